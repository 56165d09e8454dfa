"""The callback cuts inside a stock Trainer, and does there what a loop of one's own would do."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import earlybert
from earlybert import EarlyBirdCallback, Gates, Refused, Settled, apply, draw, rebind
from earlybert.anatomy import of
from earlybert.ticket.surgery import fold
from tests.conftest import tiny_batch, tiny_model

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CUT: dict[str, Any] = {"heads": 2, "neurons": 0.5, "align": 8}
STEPS, SEARCHED = 10, 4


def rows(count: int = 48) -> list[dict[str, Any]]:
    batch = tiny_batch(rows=count)
    return [{name: tensor[row] for name, tensor in batch.items()} for row in range(count)]


def trainer(model: Any, out: Path, callbacks: Any = None, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    return Trainer(
        model, TrainingArguments(**settings), train_dataset=rows(), eval_dataset=rows(8), callbacks=callbacks
    )


def batches(out: Path) -> list[dict[str, torch.Tensor]]:
    """What a Trainer with the same seed trains on, epoch by epoch."""
    loader = trainer(tiny_model(), out).get_train_dataloader()
    found: list[dict[str, torch.Tensor]] = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        found += [dict(batch) for batch in loader]
    return found[:STEPS]


def held(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def gated(model: Any) -> bool:
    """Whether a part has its forward replaced. Accelerate replaces that of the whole model."""
    return any("forward" in vars(module) for name, module in model.named_modules() if name)


@pytest.mark.parametrize("weights", ["keep", "reset"])
@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
def test_a_trainer_goes_on_with_a_smaller_model(weights: Any, precision: dict[str, Any], tmp_path: Path) -> None:
    model, whole = tiny_model(), sum(p.numel() for p in tiny_model().parameters())
    callback = EarlyBirdCallback(steps=SEARCHED, weights=weights, **CUT)
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    run = trainer(model, tmp_path, [callback], gradient_accumulation_steps=2, **saving, **precision)
    result = run.train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert run.model is model  # cut where it is
    assert [layer.heads for layer in of(model).layers] == [2, 2, 2]
    assert sum(layer.neurons for layer in of(model).layers) == 96
    assert sum(p.numel() for p in model.parameters()) < whole
    assert held(run.optimizer) == {id(p) for p in model.parameters()}
    assert {id(p) for p in run.optimizer.state} <= held(run.optimizer)
    assert not gated(model)
    assert callback.scores is not None
    assert callback.scores.steps == SEARCHED
    assert not torch.equal(callback.scores.neurons[0], torch.ones(64))
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-6",
        "checkpoint-9",
        "checkpoint-10",
    }
    evaluated = [entry["step"] for entry in run.state.log_history if "eval_loss" in entry]
    assert evaluated[:2] == [6, 9]  # transformers 5 also evaluates at the end
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    fresh = [1 - step / 6 for step in range(6)]
    schedule = [1 - step / STEPS for step in range(STEPS)]
    expected = [1e-3 * x for x in (schedule if weights == "keep" else schedule[:SEARCHED] + fresh)]
    assert rates == pytest.approx(expected)

    batch = tiny_batch(labels=False)
    expected_logits = model.eval()(**batch).logits
    run.save_model(str(tmp_path / "by_trainer"))
    earlybert.save(model, tmp_path / "by_save")
    for name in ("by_trainer", "by_save"):
        loaded = earlybert.load(tmp_path / name)
        assert earlybert.ticket_of(loaded) == callback.ticket
        if not precision:
            torch.testing.assert_close(loaded(**batch).logits, expected_logits)


def test_the_search_is_that_of_search(tmp_path: Path) -> None:
    """And `reset` goes on as a plain loop over the ticket of the untouched model would."""
    model = tiny_model(**STILL)
    callback = EarlyBirdCallback(steps=SEARCHED, weights="reset", l1=(1e-3, 1e-4), seed=3, **CUT)
    trainer(copy.deepcopy(model), tmp_path, [callback], lr_scheduler_type="constant").train()
    data = batches(tmp_path)
    expected = earlybert.search(model, data, steps=SEARCHED, lr=1e-3, l1=(1e-3, 1e-4), precision="no", seed=3)
    assert callback.scores is not None
    for ours, theirs in zip(callback.scores.neurons, expected.neurons, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert callback.ticket == draw(expected, **CUT)


@pytest.mark.parametrize("weights", ["keep", "reset"])
def test_it_does_what_a_loop_of_ones_own_does(weights: Any, tmp_path: Path) -> None:
    # float64: a key bias has no gradient but rounding, which Adam would blow up
    model = tiny_model(**STILL).double()
    run = trainer(copy.deepcopy(model), tmp_path, [EarlyBirdCallback(steps=SEARCHED, weights=weights, **CUT)])
    run.train()

    data, start = batches(tmp_path), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    gates = Gates(model)
    coefficients = torch.optim.AdamW(gates.parameters(), lr=1e-3, weight_decay=0.0)

    def step(number: int, rate: float, now: Any) -> None:
        for group in (*optimizer.param_groups, *coefficients.param_groups):
            group["lr"] = rate
        optimizer.zero_grad()
        coefficients.zero_grad()
        now(**data[number]).loss.backward()
        torch.nn.utils.clip_grad_norm_(now.parameters(), 1.0)
        if number < SEARCHED:
            gates.add_l1((1e-4, 1e-4))
            coefficients.step()
        optimizer.step()

    with gates:
        for number in range(SEARCHED):
            step(number, 1e-3 * (1 - number / STEPS), model.train())
    scores = earlybert.Scores.of_gates(gates)
    ticket = draw(scores, **CUT)
    if weights == "keep":
        fold(model, scores)
        small = apply(model, ticket)
        rebind(optimizer, model, small)
    else:
        small = apply(start, ticket)
        optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, weight_decay=0.0)
    for number in range(SEARCHED, STEPS):
        left = (number - SEARCHED) / (STEPS - SEARCHED) if weights == "reset" else number / STEPS
        step(number, 1e-3 * (1 - left), small.train())
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[name], rtol=1e-6, atol=1e-8, msg=name)


def test_a_rate_of_its_own_follows_the_trainers_schedule(tmp_path: Path) -> None:
    callback = EarlyBirdCallback(steps=3, gate_lr=0.01, l1=1e6, **CUT)  # so strong that Adam steps by the rate
    trainer(tiny_model(), tmp_path, [callback], warmup_steps=4).train()
    assert callback.scores is not None
    for row in (*callback.scores.heads, *callback.scores.neurons):
        torch.testing.assert_close(row, torch.full_like(row, 1 - 0.01 * (0 + 1 / 4 + 2 / 4)))


@pytest.mark.parametrize("saved", [SEARCHED, 5])
@pytest.mark.parametrize("weights", ["keep", "reset"])
def test_a_checkpoint_from_after_the_cut_is_gone_on_with(weights: Any, saved: int, tmp_path: Path) -> None:
    model = tiny_model(**STILL)
    settings = {
        "save_strategy": "steps",
        "save_steps": saved,
    }  # transformers 4.57 does not resume alike in a later epoch
    run = trainer(model, tmp_path / "a", [EarlyBirdCallback(steps=SEARCHED, weights=weights, **CUT)], **settings)
    run.train()
    checkpoint = tmp_path / "a" / f"checkpoint-{saved}"
    again = trainer(
        earlybert.load(checkpoint), tmp_path / "b", [EarlyBirdCallback(steps=SEARCHED, weights=weights, **CUT)]
    )
    again.train(resume_from_checkpoint=str(checkpoint))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, msg=name)
    full = trainer(tiny_model(**STILL), tmp_path / "c", [EarlyBirdCallback(steps=SEARCHED, weights=weights, **CUT)])
    with pytest.raises(Refused, match=r"of a smaller model .*earlybert\.load"):
        full.train(resume_from_checkpoint=str(checkpoint))


def test_coefficients_follow_the_fastest_parameters(tmp_path: Path) -> None:
    """And not those that are first, which may be frozen."""
    model = tiny_model()
    first = list(model.bert.embeddings.parameters())
    rest = [parameter for parameter in model.parameters() if all(parameter is not each for each in first)]
    optimizer = torch.optim.AdamW([{"params": first, "lr": 0.0}, {"params": rest, "lr": 1e-3}])
    callback = EarlyBirdCallback(steps=SEARCHED, gate_lr=1e-3, **CUT)
    plain = trainer(model, tmp_path, [callback])
    plain.optimizer, plain.lr_scheduler = optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    plain.train()
    assert callback.scores is not None
    assert all(float((row - 1).abs().max()) > 1e-4 for row in callback.scores.heads)


def test_the_stop_rule_ends_the_search_early(tmp_path: Path) -> None:
    rule = Settled(heads=2, neurons=0.5, every=1, window=2, threshold=1.0, min_steps=1)
    callback = EarlyBirdCallback(steps=8, stop=rule, gate_lr=1e-2, **CUT)
    trainer(tiny_model(), tmp_path, [callback]).train()
    assert callback.scores is not None
    assert (callback.scores.steps, callback.scores.info["ended"]) == (3, "settled")


def test_what_it_does_not_support_is_refused_and_leaves_the_model_alone(
    tmp_path: Path,
) -> None:
    def refused(sentence: str, model: Any = None, wrong: dict[str, Any] | None = None, **settings: Any) -> None:
        model = tiny_model() if model is None else model
        callback = EarlyBirdCallback(**{"steps": 2, **CUT, **(wrong or {})})
        with pytest.raises(Refused, match=sentence):
            trainer(model, tmp_path, [callback], **settings).train()
        assert not gated(model)

    refused("leaves nothing of the 10 steps", wrong={"steps": 10})
    refused("cannot remove 4 of 4 heads", wrong={"heads": 4})
    refused("cannot begin a ReduceLROnPlateau anew", wrong={"weights": "reset"},
            lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")  # fmt: skip
    cut = apply(tiny_model(), draw(earlybert.Scores.of_gates(Gates(tiny_model())), **CUT))
    refused("already been cut", model=cut)
    for wrong in ({"steps": 0}, {"weights": "kept"}, {"gate_lr": -1.0}, {"l1": -1.0}):
        with pytest.raises(Refused, match=r"must be|at least 1 step"):
            EarlyBirdCallback(**{"steps": 2, **CUT, **wrong})  # pyright: ignore[reportArgumentType]
    callback, plain = EarlyBirdCallback(steps=2, **CUT), trainer(tiny_model(), tmp_path).args
    for change, sentence in (
        ({"n_gpu": 2}, "DataParallel"),
        ({"world_size": 2}, "training on several processes"),
        ({"deepspeed": "zero.json"}, "DeepSpeed"),
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"torch_compile": True}, "torch_compile"),
        ({"n_gpu": 2, "torch_compile": True}, "DataParallel .+ and torch_compile"),
    ):
        names = ("n_gpu", "world_size", "parallel_mode", "deepspeed", "fsdp", "torch_compile")
        arguments: Any = SimpleNamespace(**{**{name: getattr(plain, name) for name in names}, **change})
        with pytest.raises(Refused, match=f"does not support {sentence}"):
            callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=None, optimizer=None)


def test_an_optimizer_whose_state_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    callback = EarlyBirdCallback(steps=2, **CUT)
    with pytest.raises(Refused, match=r"Adafactor keeps state .*weights='reset'"):
        trainer(model := tiny_model(), tmp_path, [callback], optim="adafactor").train()
    trainer(model, tmp_path, [EarlyBirdCallback(steps=2, weights="reset", **CUT)], optim="adafactor").train()


def test_a_module_that_is_no_model_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Linear"):
        trainer(torch.nn.Linear(2, 2), tmp_path, [EarlyBirdCallback(steps=2, **CUT)]).train()


def test_folds_that_share_a_configuration_are_each_cut(tmp_path: Path) -> None:
    config = tiny_model().config
    sizes = set[int]()
    for _ in range(2):
        model = BertForSequenceClassification(config)
        whole = model.num_parameters()
        trainer(model, tmp_path, [EarlyBirdCallback(steps=2, **CUT)], max_steps=3).train()
        sizes.add(model.num_parameters())
    assert len(sizes) == 1
    assert sizes.pop() < whole
    assert not hasattr(config, "earlybert")


def test_a_checkpoint_of_the_full_model_is_refused(tmp_path: Path) -> None:
    trainer(tiny_model(), tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    again = trainer(tiny_model(), tmp_path, [EarlyBirdCallback(steps=4, **CUT)])
    with pytest.raises(Refused, match="train from the beginning"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_training_that_ends_within_the_search_leaves_a_whole_model(tmp_path: Path, caplog: Any) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = state.global_step == 2
            return control

    model = tiny_model()
    callback = EarlyBirdCallback(steps=5, **CUT)
    trainer(model, tmp_path, [callback, Stop()]).train()
    assert of(model).whole
    assert callback.ticket is None
    assert not gated(model)
    assert "nothing was cut" in caplog.text
