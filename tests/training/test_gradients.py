"""A step in micro-batches against one forward pass of the whole batch, on one process."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvtp.modules.losses import random_mismatch, video_text_contrast
from fastvtp.modules.rest_of_step import Compared, Precomputed, Wanted
from fastvtp.training import gradients
from fastvtp.training.gradients import seed_micro_batch
from tests.training.steps import (
    CASES,
    CLIPS,
    SEED,
    STEP,
    Found,
    difference,
    gradients_of,
    in_micro_batches,
    in_one_forward,
    largest_difference,
    make_batch,
    make_config,
    make_task,
    parts,
)

DRAWS = [name for name, case in CASES.items() if case.dropout]
MATCHES = [name for name in CASES if name.startswith("simvtp")] + ["alpro_paper", "alpro_retrieval"]
NARROW = {"contrast_scope": "micro_batch", "matching_scope": "micro_batch"}


@pytest.fixture
def rests(monkeypatch) -> list[Precomputed]:
    """What the micro-batches of the steps to come are told of the others, one after the other."""
    made: list[Precomputed] = []

    def record(**told: Any) -> Precomputed:
        made.append(Precomputed(**told))
        return made[-1]

    monkeypatch.setattr(gradients, "Precomputed", record)
    return made


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_give_the_gradients_of_the_whole_batch(name):
    """Clips that repeat, captions of all lengths, micro-batches without a masked word or a crop that counts, and of a
    single clip. In float64 each parameter and term agrees to 1e-13, in float32 all gradients together to 1e-6."""
    case, batch = CASES[name], make_batch(CASES[name])
    for dtype, sizes in ((torch.float64, (2, 4, 8, CLIPS)), (torch.float32, (1, 8))):
        model = case.model(dtype=dtype)
        whole = in_one_forward(case, model, batch)
        for micro_batches in sizes:
            found = in_micro_batches(case, model, parts(batch, micro_batches))
            if micro_batches == 1:
                assert difference(found, whole) == 0
            elif dtype == torch.float64:
                assert largest_difference(found, whole) < 1e-13, micro_batches
            else:
                assert difference(found, whole) < 1e-6


def test_the_batches_are_as_hard_as_that_claims():
    assert max(Counter(make_batch(CASES["simvtp"]).sample_ids.tolist()).values()) == 3
    for name, counted, least in (("simvtp", "words", 0), ("alpro_paper", "words", 0), ("captioner", "tokens", 2)):
        counts = counts_of(name, 8, counted)
        assert len(set(counts)) > 3, name
        assert min(counts) == least, name
    for name in ("alpro_official", "alpro_paper"):
        assert set(counts_of(name, CLIPS, "entities")) == {0, 1}, name


def counts_of(name: str, micro_batches: int, counted: str) -> list[int]:
    case = CASES[name]
    model = case.model()
    task = make_task(make_config(case, model, micro_batches))
    asked = (task.collect(model, batch, Wanted(False, False)) for batch in parts(make_batch(case), micro_batches))
    return [int(collected.counts[counted]) for collected in asked]


@pytest.mark.parametrize("name", ["simvtp", "simvtp_hard_learned", "alpro_retrieval", "dual_encoder"])
def test_one_clip_in_all_places_has_no_negatives(name):
    case = CASES[name]
    model, batch = case.model(dtype=torch.float64), make_batch(case, ids=(7,) * CLIPS)
    whole = in_one_forward(case, model, batch)
    assert largest_difference(in_micro_batches(case, model, parts(batch, 4)), whole) < 1e-13
    assert all(value.isfinite() for value in whole.terms.values())


def test_padding_is_that_of_the_micro_batch():
    """As released; where each has a caption of the same length it changes nothing."""
    case = CASES["simvtp"]
    model = case.model(dtype=torch.float64, pad_text=True)
    for lengths, alike in (((3, 9, 9, 4) * 4, True), ((3, 4, 9, 9) * 4, False)):
        batch = make_batch(case, lengths=lengths)
        apart = largest_difference(in_micro_batches(case, model, parts(batch, 8)), in_one_forward(case, model, batch))
        assert (apart < 1e-13) == alike


# --- Wrong pairs


@pytest.mark.parametrize("name", MATCHES)
def test_wrong_pairs_are_those_of_one_forward_pass(name, rests, monkeypatch):
    case = CASES[name]
    model, batch = case.model(), make_batch(case)
    drawn: list[Any] = []
    original = model.draw_wrong
    monkeypatch.setattr(model, "draw_wrong", lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1])
    in_one_forward(case, model, batch)
    if model.config.__dict__.get("matching_negatives") == "random":
        ids = batch.sample_ids.numpy()
        drawn.append((torch.from_numpy(random_mismatch(ids, seed=SEED, step=STEP)), None))
    in_micro_batches(case, model, parts(batch, 4))
    (clips, texts), of_engine = drawn
    assert torch.equal(clips, of_engine[0])
    assert (clips != torch.arange(CLIPS)).all()
    wrong = [rest.wrong for rest in rests]
    assert torch.equal(torch.cat([pairs.clips for pairs in wrong if pairs]), batch.video[clips])
    plan = make_task(make_config(case, model, 1)).plan(model, batch)
    for pairs in wrong:
        assert pairs is not None
        assert pairs.has_clip.all()
        assert set(pairs.of_clips) == ({"visible"} if name.startswith("simvtp") else set())
    if name.startswith("simvtp"):
        visible = [pairs.of_clips["visible"] for pairs in wrong if pairs]
        assert torch.equal(torch.cat(visible), plan.visible[clips])
        return
    assert torch.equal(texts, of_engine[1])
    captions = batch.input_ids.split(list(batch.text_lengths))
    found = [pairs.input_ids for pairs in wrong if pairs and pairs.input_ids is not None]
    assert torch.equal(torch.cat(found), torch.cat([captions[row] for row in texts]))


def test_hard_negatives_of_all_clips_beside_a_contrast_of_some(rests):
    """The features are computed for them, though the contrast does not want those of others."""
    case = CASES["simvtp_hard_learned"]
    model, batch = case.model(), make_batch(case)
    clips: list[Tensor] = []
    for scope in ("global", "micro_batch"):
        in_micro_batches(case, model, parts(batch, 4), contrast_scope=scope)
        clips.append(torch.cat([rest.wrong.clips for rest in rests[-4:] if rest.wrong]))
    assert torch.equal(*clips)
    random = torch.from_numpy(random_mismatch(batch.sample_ids.numpy(), seed=SEED, step=STEP))
    assert not torch.equal(clips[0], batch.video[random])
    with pytest.raises(ValueError, match="hard negatives need the features"):
        model.draw_wrong(None, batch.sample_ids, seed=SEED, step=STEP)


# --- What is random


@pytest.mark.parametrize("name", DRAWS)
def test_dropout_is_the_same_both_times_and_its_gradients_are_exact(name, rests, monkeypatch):
    """Against one backward pass through all micro-batches, whose contrast is of features that keep their graphs."""
    case = CASES[name]
    model = case.model(dtype=torch.float64, **case.dropout)
    batches = parts(make_batch(case), 4, numbered=True)
    first, second = features_of_both(model, monkeypatch)
    found = in_micro_batches(case, model, batches)
    assert len(first) == len(second) == 4
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before.text, after.text)
        assert torch.equal(before.video, after.video)

    task, told, seen = make_task(make_config(case, model, 4)), list(rests), []

    class Together(Precomputed):
        def contrast(self, compared: Compared, sample_ids: Tensor | None = None) -> Tensor:
            seen.append(compared)
            return 0 * compared.text.sum()

    total = 0
    for batch, rest in zip(batches, told, strict=True):
        seed_micro_batch(SEED, batch.step)
        total += task.loss(model, model, batch, Together(**vars(rest)))[0] / 4
    text, video = (torch.cat([getattr(compared, side) for compared in seen]) for side in ("text", "video"))
    ids = torch.cat([batch.sample_ids for batch in batches])
    scale, directions = seen[0].logit_scale, seen[0].directions
    total += video_text_contrast(text, video, scale, sample_ids=ids, directions=directions)
    total.backward()
    assert largest_difference(found, Found(found.terms | {"loss": total.detach()}, gradients_of(model))) < 1e-13


def features_of_both(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Compared], list[Compared]]:
    """Lists that fill with the features of the micro-batches of a step: beforehand, and with the losses."""
    first, second, collect, contrast = [], [], model.collect, Precomputed.contrast

    def collects(*args: Any, **options: Any) -> Any:
        found = collect(*args, **options)
        first.append(found.compared)
        return found

    def compares(rest: Precomputed, compared: Compared, sample_ids: Tensor | None = None) -> Tensor:
        second.append(compared)
        return contrast(rest, compared, sample_ids)

    monkeypatch.setattr(model, "collect", collects)
    monkeypatch.setattr(Precomputed, "contrast", compares)
    return first, second


@pytest.mark.parametrize("name", ["simvtp", "dual_encoder", "prompter", "alpro_retrieval"])
def test_another_dropout_the_second_time_is_noticed(name, monkeypatch):
    case, numbers = CASES[name], iter(range(100))
    model, batches = case.model(**case.dropout), parts(make_batch(case), 4, numbered=True)
    in_micro_batches(case, model, batches)
    monkeypatch.setattr(gradients, "seed_micro_batch", lambda seed, number: torch.manual_seed(next(numbers)))
    with pytest.raises(RuntimeError, match=r"differ by .* `collect` must compute what `loss` does"):
        in_micro_batches(case, model, batches)


def test_every_micro_batch_has_a_dropout_of_its_own(monkeypatch):
    case = CASES["dual_encoder"]
    model, batch = case.model(**case.dropout), make_batch(case)
    first, _ = features_of_both(model, monkeypatch)
    in_micro_batches(case, model, [batch, batch])
    assert torch.equal(first[0].text, first[1].text)
    in_micro_batches(case, model, [batch, type(batch)(**{**vars(batch), "step": STEP + 1})])
    assert torch.equal(first[2].text, first[0].text)
    assert not torch.equal(first[3].text, first[0].text)


def test_a_plan_is_made_once(monkeypatch):
    for name in ("simvtp_hard", "alpro_paper", "videoprism"):
        case = CASES[name]
        model, calls = case.model(), []
        plan = model.plan
        monkeypatch.setattr(model, "plan", lambda *a, plan=plan, calls=calls, **k: calls.append(1) or plan(*a, **k))
        in_micro_batches(case, model, parts(make_batch(case), 4))
        assert len(calls) == 4, name


# --- Scopes


@pytest.mark.parametrize("name", ["simvtp_hard_learned", "dual_encoder", "prompter", "alpro_retrieval", "videoprism"])
def test_the_narrow_scope_is_the_mean_of_what_each_gives_alone(name):
    case = CASES[name]
    settings = {"word_weight": 0.0} if name.startswith("simvtp") else {}  # a mean over the words of all
    model, batches = case.model(dtype=torch.float64, **settings), parts(make_batch(case), 4)
    found = in_micro_batches(case, model, batches, **NARROW)
    alone = [in_one_forward(case, model, batch) for batch in batches]
    names = [key for key in alone[0].terms if "word" not in key]
    found.terms = {key: found.terms[key] for key in names}
    expected = Found(
        {key: torch.stack([each.terms[key] for each in alone]).mean(0) for key in names},
        {key: torch.stack([each.gradients[key] for each in alone]).mean(0) for key in alone[0].gradients},
    )
    assert largest_difference(found, expected) < 1e-13
    whole = in_one_forward(case, model, make_batch(case))
    assert (whole.terms["loss/contrastive"] - found.terms["loss/contrastive"]).abs() > 0.1


def test_scopes_are_apart(rests):
    """Each term is that of its own scope."""
    case = CASES["alpro_retrieval"]
    model, batches = case.model(), parts(make_batch(case), 4)
    wide, narrow = (in_micro_batches(case, model, batches, **scopes).terms for scopes in ({}, NARROW))
    for contrast, matching in (("global", "micro_batch"), ("micro_batch", "global")):
        terms = in_micro_batches(case, model, batches, contrast_scope=contrast, matching_scope=matching).terms
        for name, scope in (("loss/contrastive", contrast), ("loss/matching", matching)):
            assert terms[name] == (wide if scope == "global" else narrow)[name], (name, scope)
    assert wide["loss/contrastive"] != narrow["loss/contrastive"]
    assert wide["loss/matching"] != narrow["loss/matching"]
