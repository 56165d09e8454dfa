"""The fast step against the eager one: same loss, same parameters, no padding in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from earlybert import Gates, Refused, apply
from earlybert.train.fast import RaggedStep, apart
from earlybert.train.optimizer import adamw
from earlybert.train.pack import duplicate, pack, together
from earlybert.train.step import EagerStep
from tests.conftest import VOCABULARY, tiny_config, tiny_model, uneven

KINDS = {
    "classification": AutoModelForSequenceClassification,
    "qa": AutoModelForQuestionAnswering,
    "mlm": AutoModelForMaskedLM,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build(family: str, kind: str, cut: bool, **changes: Any) -> Any:
    torch.manual_seed(0)
    dropout = (
        {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0}
        if family == "distilbert"
        else NO_DROPOUT
    )
    config = tiny_config(family, **{**dropout, **changes})
    model = KINDS[kind].from_config(config).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return apply(model, uneven(family)) if cut else model


def batch_of(lengths: list[int], kind: str, seed: int, pad: int = 0) -> dict[str, torch.Tensor]:
    """Padded rows; whatever stands in the padding must not matter."""
    random = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    present = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, VOCABULARY, (rows, longest), generator=random).masked_fill(~present, pad)
    batch = {"input_ids": ids, "attention_mask": present.long()}
    if kind == "classification":
        batch["labels"] = torch.randint(0, 2, (rows,), generator=random)
    elif kind == "mlm":
        masked = (torch.rand(rows, longest, generator=random) < 0.3) & present
        masked[0, 0] = True
        batch["labels"] = torch.where(masked, ids, -100)
    else:
        batch["start_positions"] = torch.tensor([length // 2 for length in lengths])
        batch["end_positions"] = torch.tensor([length - 1 for length in lengths])
    return batch


def twenty_steps(step: EagerStep, kind: str, lengths: list[int]) -> list[float]:
    losses = []
    for seed in range(20):
        sizes = lengths if seed < 19 else lengths[:2]  # a last short batch
        losses.append(float(step(step.prepare([batch_of(sizes, kind, seed, pad=step_pad(step))]))))
    return losses


def step_pad(step: EagerStep) -> int:
    return step.model.config.pad_token_id or 0


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_twenty_steps_like_the_eager_step(family: str, kind: str, cut: bool, exact: bool) -> None:
    model = build(family, kind, cut)
    results = []
    for make in (EagerStep, lambda *a, **k: RaggedStep(*a, exact=exact, **k)):
        mine = copy.deepcopy(model)
        # SGD with momentum: Adam would blow the rounding of a gradient that is zero up to a whole step
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.05, momentum=0.9)
        losses = twenty_steps(make(mine, optimizer), kind, [1, 7, 7, 20, 3])
        results.append((losses, mine.state_dict()))
    (eager_losses, eager), (fast_losses, fast) = results
    assert fast_losses == pytest.approx(eager_losses, rel=1e-5, abs=1e-5)
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_free_places_count_nothing(kind: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert", kind, False)
    results = []
    for rounded in (1, 64):
        monkeypatch.setattr(RaggedStep, "multiple", lambda _, tokens, rounded=rounded: rounded)
        mine = copy.deepcopy(model)
        step = RaggedStep(mine, torch.optim.SGD(mine.parameters(), lr=0.05, momentum=0.9), exact=exact)
        lengths = [1, 7, 7, 20, 3]  # of 64 places 26 are free: more than the longest row has
        assert step.lay_out(batch_of(lengths, kind, 0)).tokens == (38 if rounded == 1 else 64)
        results.append((twenty_steps(step, kind, lengths), mine.state_dict()))
    (losses, tight), (rounded_losses, loose) = results
    assert rounded_losses == pytest.approx(losses, rel=1e-5, abs=1e-5)
    for name, value in tight.items():
        torch.testing.assert_close(loose[name], value, rtol=1e-4, atol=1e-5)


def test_sizes_are_few_where_code_is_made_for_each() -> None:
    def rounded(tokens: int) -> int:
        return -(-tokens // apart(tokens)) * apart(tokens)

    for begin in (256, 1000, 4096, 10_000):
        assert len({rounded(tokens) for tokens in range(begin, 2 * begin) if tokens % 128}) <= 6
    for tokens in range(257, 5000):
        assert tokens <= rounded(tokens) < 1.25 * tokens
    assert [rounded(tokens) for tokens in (20, 9 * 128, 9 * 128 + 1)] == [32, 9 * 128, 1280]
    model = build("bert", "classification", False)
    batch = batch_of([50] * 9, "classification", 0)  # 450 tokens
    for precision, tokens in (("bf16", 512), ("no", 450)):
        step = RaggedStep(model, torch.optim.SGD(model.parameters(), lr=0.1), precision=precision)
        assert step.lay_out(batch).tokens == tokens


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_twenty_steps_with_rows_of_length_1_and_512(kind: str, cut: bool) -> None:
    model = build("bert", kind, cut, max_position_embeddings=520)
    results = []
    for make in (EagerStep, RaggedStep):
        mine = copy.deepcopy(model)
        step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.05, momentum=0.9))
        results.append((twenty_steps(step, kind, [1, 512, 30]), mine.state_dict()))
    (eager_losses, eager), (fast_losses, fast) = results
    assert fast_losses == pytest.approx(eager_losses, rel=1e-5, abs=1e-5)
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_twenty_steps_in_bf16(kind: str, cut: bool) -> None:
    """As near to fp32 as the eager step in bf16 is; it rounds in other places, so bits differ."""
    model = build("bert", kind, cut)
    makes = {"exact": (EagerStep, "no"), "eager": (EagerStep, "bf16"), "fast": (RaggedStep, "bf16")}
    losses, weights = {}, {}
    for name, (make, precision) in makes.items():
        mine = copy.deepcopy(model)
        step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.05), precision=precision)
        losses[name] = torch.tensor(twenty_steps(step, kind, [1, 7, 30, 20, 3]))
        weights[name] = torch.cat([value.flatten() for value in mine.state_dict().values()])
    for found, most in ((losses, 2.5), (weights, 1.2)):
        off = {name: float((found[name] - found["exact"]).norm()) for name in ("eager", "fast")}
        assert off["fast"] <= most * off["eager"]
        assert off["eager"] > 0  # it is bf16


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_padding_never_leaks(kind: str, exact: bool, cut: bool) -> None:
    """Whatever stands in the padding, nothing changes, to the bit: neither the loss nor a parameter."""
    model = build("bert", kind, cut)
    found = []
    for pad in (0, 7, 99):
        mine = copy.deepcopy(model)
        step = RaggedStep(mine, torch.optim.SGD(mine.parameters(), lr=0.1), exact=exact)
        losses = [float(step(step.prepare([batch_of([4, 9, 1, 26], kind, seed, pad)]))) for seed in (3, 4)]
        found.append((losses, mine.state_dict()))
    for losses, weights in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(value, found[0][1][name]) for name, value in weights.items())


def test_a_search_on_the_fast_step_moves_the_coefficients_alike(family: str) -> None:
    model = build(family, "classification", False)
    rows = []
    for make in (EagerStep, RaggedStep):
        mine = copy.deepcopy(model)
        with Gates(mine) as gates:
            step = make(mine, adamw(mine, lr=1e-3, gates=gates), gates=gates, l1=(1e-2, 1e-2))
            twenty_steps(step, "classification", [5, 9, 2, 14])
            rows.append(gates.row())
    assert (rows[0] - rows[1]).abs().gt(1e-4).float().mean() < 0.02


def test_accumulated_micro_batches_count_by_their_labels() -> None:
    model = build("bert", "classification", False)
    parts = [batch_of([3, 8], "classification", 0), batch_of([5], "classification", 1)]
    losses = []
    for make in (EagerStep, RaggedStep):
        mine = copy.deepcopy(model)
        step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.1))
        losses.append([float(step(step.prepare(parts))) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("make", [EagerStep, RaggedStep])
def test_questions_without_a_place_count_for_nothing(make: type[EagerStep]) -> None:
    """Neither in the loss nor among the labels that micro-batches weigh by."""
    model = build("bert", "qa", False)
    whole = batch_of([9, 9, 9, 9, 9], "qa", 0)
    whole["start_positions"] = torch.tensor([1, 2, -100, -100, 3])
    whole["end_positions"] = torch.tensor([4, 2, -100, -100, 3])
    parts = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 4), slice(4, 5))]
    outside = {**whole, "start_positions": torch.tensor([1, 2, 9, 40, 3])}
    outside["end_positions"] = torch.tensor([4, 2, 9, 40, 3])  # behind the row, as a cut answer may be
    found = []
    for micro_batches in ([whole], parts, [outside]):
        mine = copy.deepcopy(model)
        step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.0), max_grad_norm=None)
        step(step.prepare(micro_batches))
        found.append(torch.cat([p.grad.flatten() for p in mine.parameters() if p.grad is not None]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_next_tokens_are_counted_without_the_first_label(family: str) -> None:
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = AutoModelForCausalLM.from_config(tiny_config(family, **dropout)).train()
    ids = torch.randint(5, VOCABULARY, (6, 12))
    labels = ids.clone()
    labels[:4, 3:] = -100  # few labels, and in the last of these rows only the first, which nobody predicts
    labels[3, 1:] = -100
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = []
    for cuts in ((6,), (3, 1, 2)):
        mine = copy.deepcopy(model)
        step = EagerStep(mine, torch.optim.SGD(mine.parameters(), lr=0.0), max_grad_norm=None)
        parts = zip(*(value.split(list(cuts)) for value in whole.values()), strict=True)
        loss = step(step.prepare([dict(zip(whole, part, strict=True)) for part in parts]))
        found.append((float(loss), torch.cat([p.grad.flatten() for p in mine.parameters() if p.grad is not None])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_with_dropout_the_mean_loss_agrees(family: str) -> None:
    """200 steps that do not move: the losses of both steps are samples of the same thing."""
    means = []
    for make in (EagerStep, RaggedStep):
        model = tiny_model(family)
        step = make(model.train(), torch.optim.SGD(model.parameters(), lr=0.0))
        torch.manual_seed(1)
        losses = torch.tensor(
            [float(step(step.prepare([batch_of([5, 9, 14, 3], "classification", 0)]))) for _ in range(200)]
        )
        means.append((losses.mean(), losses.std() / 200**0.5))
    (eager, error), (fast, other) = means
    assert abs(eager - fast) < 4 * (error**2 + other**2) ** 0.5


@pytest.mark.parametrize("labels", [6, 12])
def test_several_labels_a_row_are_not_those_of_tokens(labels: int) -> None:
    """Even where a row has as many tokens."""
    several = {"num_labels": labels, "problem_type": "multi_label_classification"}
    model = build("bert", "classification", False, **several)
    batch = batch_of([12, 7], "classification", 0)
    batch["labels"] = torch.randint(0, 2, (2, labels)).float()
    losses = []
    for make in (EagerStep, RaggedStep):
        mine = copy.deepcopy(model)
        step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.1))
        losses.append([float(step(step.prepare([batch]))) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_positions_of_ones_own_go_along() -> None:
    model = build("roberta", "classification", cut=False).eval()
    batch = batch_of([3, 7, 5], "classification", 0)
    batch["position_ids"] = torch.arange(7)[None] + 9
    found = []
    for make in (EagerStep, RaggedStep):
        step = make(model, torch.optim.SGD(model.parameters(), lr=0.1))
        found.append(float(step.loss(step.prepare([batch])[0]).detach()))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    del batch["position_ids"]
    assert float(step.loss(step.prepare([batch])[0]).detach()) != pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize(
    ("mask", "ids", "why"),
    [
        ([[0, 0, 1, 1], [1, 1, 1, 1]], 5, "have their padding behind the last one; pad on the right"),
        ([[1, 0, 1, 1], [1, 1, 1, 1]], 5, "have their padding behind the last one"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], 5, "leave out empty rows"),
        ([[[1] * 4] * 4] * 2, 5, r"attention_mask \[rows, length\]"),
        (
            [[1, 1, 1, 1], [1, 1, 1, 1]],
            VOCABULARY,
            rf"embeddings for 0 to {VOCABULARY - 1}; .+ resize_token_embeddings",
        ),
        ([[1, 1, 1, 1], [1, 1, 1, 1]], -1, "token ids of -1 to -1"),
        ([[1, 1, 1, 1], [1, 1, 1, 1]], None, "rows of input_ids"),
    ],
)
def test_what_cannot_be_packed_is_refused(mask: list[Any], ids: int | None, why: str) -> None:
    model = build("bert", "classification", cut=False)
    step = RaggedStep(model, torch.optim.SGD(model.parameters(), lr=0.1))
    rows = {"inputs_embeds": torch.zeros(2, 4, 32)} if ids is None else {"input_ids": torch.full((2, 4), ids)}
    with pytest.raises(Refused, match=why):
        step.prepare([{**rows, "attention_mask": torch.tensor(mask), "labels": torch.tensor([0, 1])}])


def test_packing() -> None:
    batch = batch_of([2, 5, 1], "mlm", 0)
    packed = pack(batch, position_offset=2, multiple=8, rows=4)
    assert packed.tokens == 8
    assert packed.bounds.tolist() == [0, 2, 7, 8, 8, 8]
    assert packed.inputs["position_ids"].tolist() == [[2, 3, 2, 3, 4, 5, 6, 2]]
    longer = pack(batch, multiple=16)
    assert longer.bounds.tolist() == [0, 2, 7, 8, 16]
    assert longer.inputs["position_ids"][0, 8:].tolist() == [0] * 8
    assert (longer.inputs["labels"][0, 8:] == -100).all()
    assert longer.longest == 8
    labels = pack(batch_of([2, 5, 1], "classification", 0), rows=5).inputs["labels"]
    assert labels[3:].tolist() == [-100, -100]


def test_a_packed_batch_in_one_buffer() -> None:
    packed = pack(batch_of([2, 5, 1], "qa", 0), position_offset=2, multiple=8, rows=4)
    packed.inputs["more"] = torch.arange(3, dtype=torch.int32)
    once = together(packed, torch.device("cpu"))
    again = duplicate(once)
    assert again.buffer is not None
    assert once.buffer is not None
    again.buffer.zero_()
    assert not again.bounds.any()
    assert not any(value.any() for value in again.inputs.values())
    again.buffer.copy_(once.buffer)
    for other in (once, again):
        assert torch.equal(other.bounds, packed.bounds)
        assert other.inputs.keys() == packed.inputs.keys()
        assert all(torch.equal(other.inputs[name], value) for name, value in packed.inputs.items())
        assert all(value.data_ptr() % 16 == 0 for value in other.inputs.values())
    assert (once.lengths, once.longest) == (packed.lengths, packed.longest)


def test_the_model_is_the_stock_model_outside_a_step_and_other_heads_are_refused() -> None:
    model = build("bert", "classification", False)
    batch = batch_of([3, 8], "classification", 0)
    before = model(**batch).logits
    step = RaggedStep(model, torch.optim.SGD(model.parameters(), lr=0.0))
    step(step.prepare([batch]))
    assert torch.equal(model(**batch).logits, before)
    with pytest.raises(Refused, match="without padding"):
        RaggedStep(tiny_model("bert", head=False), torch.optim.SGD(model.parameters(), lr=0.0))


def test_a_model_that_ignores_the_registered_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would let rows see each other, silently."""
    from earlybert.train import ragged

    monkeypatch.setattr(ragged, "COUNTED", "sdpa")  # as a model does that always runs its own attention
    model = build("bert", "classification", False)
    with pytest.raises(Refused, match="does not let its attention be replaced"):
        RaggedStep(model, torch.optim.SGD(model.parameters(), lr=0.0))
