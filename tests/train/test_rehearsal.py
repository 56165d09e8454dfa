"""A step that is wrong is found before a run; one that is right leaves no trace of having been tried."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from earlybert import Gates
from earlybert.train.fast import RaggedStep
from earlybert.train.lamb import lamb
from earlybert.train.optimizer import adamw
from earlybert.train.rehearsal import Unusable, _Bench, rehearse
from earlybert.train.step import EagerStep
from tests.conftest import tiny_model
from tests.train.test_fast import batch_of, build


def dropping() -> Any:
    """A model with dropout."""
    return tiny_model("bert").train()


def rehearsed(make: Callable[..., EagerStep], model: Any, sample: list[Any], **settings: Any) -> str | None:
    optimizer = settings.pop("optimizer", None) or adamw(model, lr=1e-5, weight_decay=0.01)
    step = make(model, optimizer, precision="bf16", **settings)
    return rehearse(step, lambda mode: EagerStep(model, optimizer, precision=mode, **settings), sample)


@pytest.mark.parametrize("kind", ["classification", "qa", "mlm"])
@pytest.mark.parametrize("optimizer", [adamw, lamb])
def test_a_right_step_passes(kind: str, optimizer: Any) -> None:
    model = build("bert", kind, kind == "qa")
    sample = [batch_of([5, 9, 1, 3], kind, 0), batch_of([2, 7], kind, 1)]
    assert rehearsed(RaggedStep, model, sample, optimizer=optimizer(model, lr=1e-3)) is None
    assert rehearsed(RaggedStep, dropping(), [batch_of([5, 9, 1, 3], "classification", 0)]) is None


def test_nothing_is_left_of_it() -> None:
    """In the middle of a search: weights, coefficients, moments, counts, modes, gradients and random numbers."""
    model = dropping()
    model.bert.encoder.eval()
    with Gates(model) as gates:
        optimizer = adamw(model, lr=1e-3, gates=gates)
        step = RaggedStep(model, optimizer, gates=gates, l1=(1e-2, 1e-2))
        step(step.prepare([batch_of([5, 3], "classification", 0)]))
        for group in optimizer.param_groups:
            group["lr"] = 1e-4

        def everything() -> dict[str, Any]:
            state = copy.deepcopy(optimizer.state_dict()["state"])
            modes = [module.training for module in model.modules()]
            weights = [parameter.detach().clone() for parameter in [*model.parameters(), *gates.parameters()]]
            rates = [(group["lr"], group["base_lr"]) for group in optimizer.param_groups]
            return {"state": state, "modes": modes, "weights": weights, "rates": rates, "random": torch.get_rng_state()}

        before = everything()
        found = rehearse(
            step,
            lambda mode: EagerStep(model, optimizer, precision=mode, gates=gates, l1=(1e-2, 1e-2)),
            [batch_of([5, 9, 1, 3], "classification", 1)],
        )
        assert found is None
        after = everything()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


class Louder(RaggedStep):
    """Its loss and so its gradients are too large; clipping hides that from the update."""

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) * 1.2


class Forgetful(RaggedStep):
    """One of its gradients does not arrive."""

    def clip(self, most: float) -> None:
        self.model.bert.encoder.layer[1].output.dense.weight.grad.zero_()
        super().clip(most)


class Hasty(RaggedStep):
    """Its updates are twice as large."""

    def __call__(self, prepared: Any) -> Tensor:
        before = [parameter.detach().clone() for parameter in self.clipped]
        loss = super().__call__(prepared)
        with torch.no_grad():
            for parameter, old in zip(self.clipped, before, strict=True):
                parameter.add_(parameter - old)
        return loss


class Stale(RaggedStep):
    """It computes on the rows of its first step again and again, as a graph does whose inputs nobody fills."""

    first: Any = None

    def __call__(self, prepared: Any) -> Tensor:
        self.first = prepared if self.first is None else self.first
        return super().__call__(self.first)


class Monotonous(RaggedStep):
    """Its dropout is the same in every step, as that of a graph whose seeds nobody draws."""

    def __call__(self, prepared: Any) -> Tensor:
        torch.manual_seed(0)
        return super().__call__(prepared)


class Fixed(RaggedStep):
    """Its learning rates are those of its first step, as in a graph that they were captured in."""

    rates: Any = None

    def __call__(self, prepared: Any) -> Tensor:
        self.rates = self.rates or [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        return super().__call__(prepared)


class Wild(RaggedStep):
    """Its gradients are wrong in training alone."""

    def clip(self, most: float) -> None:
        if self.model.bert.training:
            for parameter in self.clipped:
                parameter.grad = torch.randn_like(parameter) if parameter.grad is not None else None
        super().clip(most)


class Torn(RaggedStep):
    """With dropout, where something is dropped, it gives no numbers."""

    def clip(self, most: float) -> None:
        if self.model.bert.embeddings.dropout.p > 0.01 and self.model.bert.training:
            self.clipped[0].grad.fill_(float("nan"))
        super().clip(most)


class Broken(RaggedStep):
    """As a compiler that does not know this GPU."""

    def __call__(self, prepared: Any) -> Tensor:
        raise AttributeError("no such instruction\nand more")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Louder, "its loss in step 1 is .* in fp32"),
        (
            Forgetful,
            r"its gradient of bert.encoder.layer.1.output.dense.weight is [\d.e-]+ away from that in fp32, whose length is ",
        ),
        (Hasty, "its update of the matrices is .* away from that in fp32"),
        (Stale, "its (loss in step|gradient of) .* in fp32"),
        (Fixed, "its update of the matrices is .* away from that in fp32"),
        (Wild, "its gradient of .* away from that in fp32"),
        (Torn, "its gradients with dropout are not finite"),
        (Monotonous, "its dropout is the same in every step"),
        (Broken, "it failed: AttributeError: no such instruction$"),
    ],
)
def test_a_wrong_step_is_found(make: Any, said: str) -> None:
    model = dropping()
    with torch.no_grad():  # a head that does not say the same of every row
        model.classifier.weight.mul_(50)
        model.bert.pooler.dense.weight.mul_(10)
    start = copy.deepcopy(model.state_dict())
    found = rehearsed(make, model, [batch_of([5, 9, 1, 3], "classification", 0)])
    assert found is not None
    assert re.search(said, found), found
    torch.testing.assert_close(model.state_dict(), start, rtol=0, atol=0)


def test_a_model_without_dropout_may_say_the_same_twice() -> None:
    assert (
        rehearsed(Monotonous, build("bert", "classification", False), [batch_of([5, 3], "classification", 0)]) is None
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), None])
def test_without_a_reference_nothing_is_said_against_a_step(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = dropping()
    batch = batch_of([5, 3], "classification", 0)

    class Large(EagerStep):
        def __call__(self, prepared: Any) -> Tensor:
            if error is not None:
                raise error
            return super().__call__(prepared)

    if error is None:
        batch["labels"] = torch.full((2,), -100)
    optimizer = adamw(model, lr=1e-3)
    step = RaggedStep(model, optimizer)
    assert rehearse(step, lambda mode: Large(model, optimizer, precision=mode), [batch]) is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the fast step was not rehearsed: ")


def test_a_plain_step_that_fails_is_no_reference_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """As with an attention kernel that takes no fp32."""

    class Faulty(EagerStep):
        def __call__(self, prepared: Any) -> Tensor:
            raise RuntimeError("only support fp16 and bf16\nand more")

    model = dropping()
    start = copy.deepcopy(model.state_dict())
    optimizer = adamw(model, lr=1e-3)
    sample = [batch_of([5], "classification", 0)]
    assert rehearse(RaggedStep(model, optimizer), lambda _: Faulty(model, optimizer), sample) is None
    assert caplog.messages == ["the fast step was not rehearsed: RuntimeError: only support fp16 and bf16"]
    torch.testing.assert_close(model.state_dict(), start, rtol=0, atol=0)


def test_what_failed_holds_no_memory() -> None:
    """When things are put back, what was computed is gone."""
    held: list[Any] = []

    class Large(EagerStep):
        def __call__(self, prepared: Any) -> Tensor:
            activations = torch.zeros(3)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    class Fast(RaggedStep):
        def refresh(self) -> None:
            gone.extend(each() is None for each in held)

    gone: list[bool] = []
    model = dropping()
    optimizer = adamw(model, lr=1e-3)
    step = Fast(model, optimizer)
    gc.disable()
    try:
        rehearse(step, lambda mode: Large(model, optimizer, precision=mode), [batch_of([5], "classification", 0)])
    finally:
        gc.enable()
    assert len(held) == 2  # with fewer rows, again
    assert gone
    assert all(gone)


@pytest.mark.parametrize(("memory", "rows"), [(100, [32]), (10, [32, 8]), (1, [32, 8])])
def test_few_rows_are_enough_and_fewer_where_there_is_no_memory(
    memory: int, rows: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    class Counting(EagerStep):
        def prepare(self, micro_batches: Any) -> Any:
            seen.extend(len(batch["input_ids"]) for batch in micro_batches)
            return super().prepare(micro_batches)

        def __call__(self, prepared: Any) -> Tensor:
            if seen[-1] > memory:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().__call__(prepared)

    model = dropping()
    optimizer = adamw(model, lr=1e-3)
    sample = [batch_of([3] * 40, "classification", seed) for seed in range(4)]
    step = RaggedStep(model, optimizer)
    assert rehearse(step, lambda mode: Counting(model, optimizer, precision=mode), sample) is None
    assert list(dict.fromkeys(seen)) == rows
    if memory >= 8:
        assert seen.count(rows[-1]) == 2 * 3 * 2  # two references, three steps, two micro-batches
    assert len(caplog.messages) == (0 if memory >= 8 else 1)


def test_a_device_that_does_nothing_more_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly(RaggedStep):
        dead = False

        def __call__(self, prepared: Any) -> Tensor:
            self.dead = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

        def refresh(self) -> None:
            if self.dead:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(
        Unusable, match=r"failed \(RuntimeError: CUDA error: an illegal memory .+d\); .* --engine eager"
    ):
        rehearsed(Deadly, dropping(), [batch_of([5, 3], "classification", 0)])


def test_what_is_compared_lies_on_one_device() -> None:
    """Parameters on a GPU that is only pretended, their copies on the CPU."""
    with FakeTensorMode():
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.empty(2, 3, device="cuda"))
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.state[model.weight] = {
            "step": 1.0,
            "exp_avg": torch.zeros_like(model.weight),
        }
        bench = _Bench(SimpleNamespace(model=model, optimizer=optimizer))  # type: ignore[arg-type]
        devices = [each.device.type for pair in bench.results() for each in pair]
    assert devices == ["cpu"] * 2
