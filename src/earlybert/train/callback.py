"""Search, cut and go on inside somebody's own Hugging Face `Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from ..anatomy import Refused, of
from ..ticket import Gates, Scores, Settled, Ticket, apply, draw, ticket_of
from ..ticket.draw import Scope
from ..ticket.settled import Watch
from ..ticket.surgery import carry, fold, refuse_factored, slices
from .search import l1_pair

logger = logging.getLogger(__name__)


class EarlyBirdCallback(TrainerCallback):
    """Makes the first steps of `Trainer.train()` the search, then draws a ticket, cuts the model in place, and lets
    the Trainer go on with the smaller one.

        callback = earlybert.EarlyBirdCallback(steps=200, heads=4, neurons=0.4)
        Trainer(model, arguments, ..., callbacks=[callback]).train()

    Give it to the constructor, as here: by `add_callback` it hears too late of a checkpoint that does not fit.

    The Trainer's data, loss, optimizer, clipping and schedule are used as they are. The coefficients have an AdamW of
    their own whose rate follows the Trainer's schedule. Evaluations and checkpoints begin after the cut: one from
    before it would not fit the model any more. A checkpoint from after it is gone on with by
    `earlybert.load(checkpoint)`, a Trainer on that model with this callback passed again, and
    `train(resume_from_checkpoint=checkpoint)`; without the callback, the learning rate after a `reset` is wrong for
    the rest.

    One process and one device; DataParallel, DDP, DeepSpeed, FSDP, `torch_compile` and fp16 are refused (bf16 is not).

    Args:
        steps: Cap of the search, in optimizer steps; they count among the Trainer's own.
        heads: What to remove, as in `draw`.
        neurons: As in `draw`.
        heads_scope: As in `draw`.
        neurons_scope: As in `draw`.
        align: As in `draw`.
        weights: `keep` goes on from the searched weights with the coefficients folded in, the optimizer's moments cut
            along, and one schedule over the whole run. `reset` is the paper's: back to the weights from before the
            search, a fresh optimizer, and the schedule from its beginning, compressed to the steps that are left.
        l1: As in `search`.
        gate_lr: Highest learning rate of the coefficients; the Trainer's own when not given.
        stop: May end the search before the cap, as in `search`.
        seed: Breaks ties when the ticket is drawn.

    Attributes:
        scores: The coefficients at the end of the search; None before.
        ticket: What was drawn; None before.

    Raises:
        Refused: A setting is out of range; and, when training begins, an unsupported or cut model, a set-up that is
            not supported, a budget that cannot be met, a search as long as the whole training, or a checkpoint of a
            cut model resumed with the full one.
    """

    def __init__(
        self,
        *,
        steps: int,
        heads: int | float,
        neurons: int | float,
        heads_scope: Scope = "layer",
        neurons_scope: Scope = "global",
        align: int = 64,
        weights: Literal["keep", "reset"] = "keep",
        l1: float | tuple[float, float] = 1e-4,
        gate_lr: float | None = None,
        stop: Settled | None = None,
        seed: int = 0,
    ) -> None:
        if steps < 1:
            raise Refused(f"a search needs at least 1 step, got {steps}.")
        if weights not in ("keep", "reset"):
            raise Refused(f"weights must be 'keep' or 'reset', got {weights!r}.")
        if gate_lr is not None and not gate_lr >= 0:
            raise Refused(f"gate_lr must be at least 0, got {gate_lr!r}.")
        self.steps = steps
        self.weights = weights
        self.l1 = l1_pair(l1)
        self.gate_lr = gate_lr
        self.stop = stop
        self.seed = seed
        self.scores: Scores | None = None
        self.ticket: Ticket | None = None
        self._budget: dict[str, Any] = {
            "heads": heads,
            "neurons": neurons,
            "heads_scope": heads_scope,
            "neurons_scope": neurons_scope,
            "align": align,
        }
        self._searching: _Searching | None = None
        self._fitting: RemovableHandle | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Have a checkpoint that does not fit the full model refused with a sentence."""
        if isinstance(model := objects.get("model"), nn.Module):
            self._fitting = model.register_load_state_dict_pre_hook(_refuse_smaller)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Put coefficients on the model."""
        self.close()  # of a training that was broken off
        if self._fitting is not None:  # a checkpoint has been loaded by now
            self._fitting.remove()
        _refuse_setup(args, objects["optimizer"])
        model, scheduler = objects["model"], objects["lr_scheduler"]
        if ticket_of(model) is not None:
            if state.global_step == 0 and self.ticket is None:
                raise Refused("this model has already been cut; train it without this callback.")
            if isinstance(scheduler, LambdaLR) and scheduler.last_epoch < state.global_step:
                behind = scheduler.last_epoch  # gone on after a reset; 0 where the checkpoint was written at the cut
                _compress(scheduler, state.max_steps, state.global_step - behind, behind)
            return
        if state.global_step > 0:
            raise Refused(
                "this checkpoint is of the full model, without the coefficients of a search; train from the beginning."
            )
        if self.steps >= state.max_steps:
            raise Refused(
                f"a search of {self.steps} steps leaves nothing of the {state.max_steps} steps of this training."
            )
        if self.weights == "reset" and not isinstance(scheduler, LambdaLR):
            raise Refused(f"weights='reset' cannot begin a {type(scheduler).__name__} anew; use weights='keep'.")
        gates = Gates(model)
        draw(Scores.of_gates(gates), **self._budget)  # a budget that cannot be met is refused before any compute
        watch = self.stop.watch(self.steps) if self.stop is not None else None
        start = None
        if self.weights == "reset":
            start = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        betas = (args.adam_beta1, args.adam_beta2)
        optimizer = torch.optim.AdamW(gates.parameters(), lr=0.0, betas=betas, eps=1e-8, weight_decay=0.0)
        self.scores = self.ticket = None
        self._searching = _Searching(gates.attach(), optimizer, watch, start)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Update the coefficients with the gradient the model is updated with, their L1 term added once (Eq. 4)."""
        if self._searching is not None:
            self._searching.update(objects["optimizer"], self.gate_lr, self.l1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Cut when the search is over."""
        searching = self._searching
        if searching is None:
            return
        optimizer = objects["optimizer"]
        if state.global_step == 1 and self.weights == "keep":
            try:
                refuse_factored(optimizer)
            except Refused:
                self.close()
                raise
        done, watch = state.global_step, searching.watch
        settled = watch is not None and watch.due(done) and watch.check_gates(done, searching.gates)
        if done < self.steps and not settled:
            _put_off(control)
            return
        self._searching = None
        searching.gates.detach()
        info: dict[str, Any] = {
            "l1": list(self.l1),
            "lr": args.learning_rate,
            "gate_lr": args.learning_rate if self.gate_lr is None else self.gate_lr,
            "cap": self.steps,
            "ended": "settled" if settled else "cap",
        }
        if watch is not None:
            info["distances"] = watch.distances
        self.scores = Scores.of_gates(searching.gates, steps=done, seed=self.seed, info=info)
        self.ticket = draw(self.scores, **self._budget)
        _cut(objects["model"], self.scores, self.ticket, optimizer, searching.start)
        if searching.start is not None:
            _compress(objects["lr_scheduler"], state.max_steps, done, 0)
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        logger.info("cut after %d steps: %d heads, %d neurons", done, self.ticket.heads_kept, self.ticket.neurons_kept)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Put evaluations and checkpoints off to after the cut."""
        if self._searching is not None:
            _put_off(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Take the coefficients off a model whose training ended within the search."""
        if self._searching is not None:
            logger.warning("training ended after %d steps, within the search: nothing was cut", state.global_step)
        self.close()

    def close(self) -> None:
        """Take the coefficients off the model, when training was broken off while they were on it."""
        if self._searching is not None:
            self._searching.gates.detach()
            self._searching = None


class _Searching:
    """What lives as long as the search."""

    def __init__(
        self,
        gates: Gates,
        optimizer: torch.optim.Optimizer,
        watch: Watch | None,
        start: dict[str, torch.Tensor] | None,
    ) -> None:
        self.gates = gates
        self.optimizer = optimizer
        self.watch = watch
        self.start = start
        """theta_0, where the weights are to be reset."""

    def update(self, theirs: Any, highest: float | None, l1: tuple[float, float]) -> None:
        """One step of the coefficients, at the rate the Trainer's schedule has reached for its fastest parameters."""
        group = max(theirs.param_groups, key=lambda each: float(each.get("initial_lr", each["lr"])))
        rate = float(group["lr"])
        if highest is not None:
            peak = float(group.get("initial_lr", rate))
            rate = highest * rate / peak if peak > 0 else 0.0
        for mine in self.optimizer.param_groups:
            mine["lr"] = rate
        self.gates.add_l1(l1)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _cut(
    model: nn.Module,
    scores: Scores,
    ticket: Ticket,
    optimizer: Any,
    start: dict[str, torch.Tensor] | None,
) -> None:
    """Cut the model where it is, and put its optimizer on the new parameters."""
    if start is None:
        fold(model, scores)
    else:
        model.load_state_dict(start)
        optimizer.state.clear()
    before, smaller = dict(model.named_parameters()), slices(of(model), ticket)
    apply(model, ticket, inplace=True)
    carry(getattr(optimizer, "optimizer", optimizer), before, model, smaller)


def _compress(scheduler: LambdaLR, steps: int, searched: int, done: int) -> None:
    """Run a schedule of `steps` steps in those that `searched` left; `done` of them are behind it."""
    stretch = steps / (steps - searched)

    def compressed(factor: Any) -> Any:
        return lambda step: factor(step * stretch)

    scheduler.lr_lambdas = [compressed(factor) for factor in scheduler.lr_lambdas]
    scheduler.last_epoch = done
    scheduler._last_lr = [
        base * factor(done) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _refuse_smaller(model: nn.Module, weights: Mapping[str, torch.Tensor], *_: Any) -> None:
    """Before weights are loaded: those of a cut model do not fit the full one."""
    for name, value in model.state_dict().items():
        if name in weights and weights[name].numel() < value.numel():
            raise Refused(
                f"this checkpoint is of a smaller model ({name} is {list(weights[name].shape)}, not "
                f"{list(value.shape)}), as a cut one is; load it by earlybert.load(checkpoint), and resume with a "
                "Trainer on that model."
            )


def _put_off(control: TrainerControl) -> None:
    control.should_save = control.should_evaluate = False


def _refuse_setup(args: TrainingArguments, optimizer: Any) -> None:
    wrong = {
        "DeepSpeed": bool(args.deepspeed),
        "FSDP": bool(args.fsdp),
        "DataParallel (set CUDA_VISIBLE_DEVICES to one device)": args.n_gpu > 1,
        "training on several processes": args.parallel_mode is ParallelMode.DISTRIBUTED or args.world_size > 1,
        "torch_compile": bool(args.torch_compile),
        "fp16 (use bf16)": getattr(optimizer, "scaler", None) is not None,
    }
    found = [name for name, is_so in wrong.items() if is_so]
    if found:
        raise Refused(f"the callback does not support {' and '.join(found)}: it cuts one plain model on one device.")
