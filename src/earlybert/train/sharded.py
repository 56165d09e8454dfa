"""A model in parts, one in each process of a job (FSDP2: Rajbhandari et al. 2020, stage 3; Zhao et al. 2023).

Parameters are cut along their first dimension. A layer's are put together for its forward and its backward pass and
let go again; gradients are summed into the same parts, and the optimizer keeps its moments for them alone. Coefficients
of a search are small and stay whole in every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..anatomy import Refused, of
from .step import EagerStep

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch without torch.distributed, or before 2.6
    DTensor = FSDPModule = type(None)

WANTED = ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms")
"""Of FSDP2: with them gradients are summed, not averaged, on every backend."""


def refuse(world: int) -> None:
    """Refuse what cannot be sharded, before any compute.

    Args:
        world: Processes of the job.

    Raises:
        Refused: There is one process only, or torch is too old.
    """
    if not all(hasattr(FSDPModule, name) for name in WANTED):
        raise Refused(f"shard full needs a torch whose FSDP2 can sum gradients (2.9), this is {torch.__version__}.")
    if world == 1:
        raise Refused("shard full needs a job of several processes; launch it with torchrun, or use shard none.")


def shard(step: EagerStep, device: torch.device) -> None:
    """Cut the model of a step up over all processes, which all call this with the same weights.

    The model may lie on the host: its layers come to the device one by one.

    Args:
        step: With an optimizer that has not stepped; it holds the parts afterwards.
        device: Where to compute.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Its output is a view, which would matter if anything wrote into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    model = step.model
    anatomy = of(model)
    layers = []
    for number, layer in enumerate(anatomy.layers):
        stack = layer.query.partition(f".{number}.")[0]
        layers.append(model.get_submodule(f"{stack}.{number}"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
    for module in _sharded(model):
        # A sum: every process has weighed its own by the tokens of all. Sums alone are what every backend has.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    parts = dict(model.named_parameters())
    for group in step.optimizer.param_groups:
        group["params"] = [parts[names[id(p)]] if id(p) in names else p for p in group["params"]]
    if step.gates is not None:
        for parameter in step.gates.parameters():
            parameter.data = parameter.data.to(device)
    step.follow(device)


def last_micro_batch(model: nn.Module, last: bool) -> None:
    """Whether the backward pass that comes is a step's last, behind which gradients are summed over the processes."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)


def close(model: nn.Module) -> None:
    """Let whole parameters go that a forward pass without a backward pass has left in the root."""
    for module in _sharded(model):
        module.reshard()


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its part, or all of one that is not sharded. A view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of whole tensors.

    Args:
        tensors: What this process holds of them.
        like: Parameters that are sharded as these tensors are, all of them or none.

    Returns:
        fp32 `[tensors]`, the same in every process.
    """
    foreach: Any = torch
    found = torch.stack(foreach._foreach_norm(tensors))
    if not isinstance(like[0], DTensor):
        return found
    squares = found.square()
    dist.all_reduce(squares, group=like[0].device_mesh.get_group())
    return squares.sqrt()


@torch.no_grad()
def clip(parameters: Sequence[Tensor], most: float) -> None:
    """Scale gradients, in place, so that the norm of all together is at most `most`, as `clip_grad_norm_` does."""
    held = [(parameter, part(parameter.grad)) for parameter in parameters if parameter.grad is not None]
    if held:
        foreach: Any = torch
        grads = [grad for _, grad in held]
        total = torch.linalg.vector_norm(norms(grads, [parameter for parameter, _ in held]))
        foreach._foreach_mul_(grads, (most / (total + 1e-6)).clamp(max=1.0))


def gathered(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors. Every process has to call this; one tensor after the other is put together.

    Args:
        tensors: Sharded or not, in the same order in every process.
        keep: Whether this process wants them.

    Returns:
        Those that were sharded on the host, the others as they are; nothing where they are not wanted.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
            whole = whole.cpu() if keep else whole
        if keep:
            found[name] = whole
    return found


def like(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A whole tensor, sharded as `wanted` is; itself where that is not. Nothing is sent: all processes have it."""
    if not isinstance(wanted, DTensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, wanted.device_mesh, wanted.placements, src_data_rank=None)


@torch.no_grad()
def fill(model: nn.Module, parts: nn.Module, *, keep: bool) -> None:
    """Give a whole model the weights of a sharded one. Every process has to call this.

    Args:
        model: Of the same shapes; left alone where the weights are not wanted.
        parts: Sharded.
        keep: Whether this process wants them.
    """
    whole = gathered({**dict(parts.named_parameters()), **dict(parts.named_buffers())}, keep=keep)
    if keep:
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            value.copy_(whole[name])


def _sharded(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
