"""Plans whose shapes seldom change: what is behind the real rows changes nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fastvtp.modules.capacity import NO_LABEL
from fastvtp.modules.losses import random_mismatch
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.plan import CaptionTokens, SimVTPPlan, StepMasks, lay_out
from tests.systems.simvtp.test_model import make_model

VARIANTS = [(preset, negatives) for preset in ("official", "fastvtp") for negatives in ("random", "hard")]


def captions_of(lengths: Any, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(5, 50, (n,), generator=generator) for n in lengths]
    for text in words:
        text[0], text[-1] = 2, 3
    return torch.cat(words)


def plans_of(model: SimVTP, lengths: tuple[int, ...], masked: float) -> list[SimVTPPlan]:
    """Of the same masks: without room, and with it."""
    config, ids, clips = model.config, captions_of(lengths), torch.arange(len(lengths))
    visible, predicted = config.draw_masks(clips, seed=1, step=3)
    hidden = (torch.rand(len(ids), generator=torch.Generator().manual_seed(2)) < masked) & (ids > 4)
    hard = config.matching_negatives == "hard"
    return [
        lay_out(
            config,
            StepMasks(visible, predicted, hidden),
            CaptionTokens(ids, np.asarray(lengths)),
            mismatch=None if hard else random_mismatch(clips.numpy(), seed=1, step=3),
            sample_ids=clips,
            seed=1,
            step=3,
            roomy=roomy,
        )
        for roomy in (False, True)
    ]


@pytest.mark.parametrize(
    ("lengths", "masked"),
    [
        ((6, 4, 9), 0.5),
        ((7,), 0.5),
        ((2, 2, 2, 2), 0.5),  # empty captions
        ((17, 16, 18), 0.0),
        ((40, 3, 33, 2, 21), 1.0),
        ((64, 64, 64), 0.7),
    ],
    ids=["usual", "one clip", "empty", "no word masked", "all words masked", "longest"],
)
@pytest.mark.parametrize(("preset", "negatives"), VARIANTS)
def test_room_changes_no_loss_and_no_gradient(preset, negatives, lengths, masked):
    """Branches that are skipped included: sequences draw them."""
    model = make_model(preset, matching_negatives=negatives, max_text_length=64, drop_path=0.3).train()
    generator = torch.Generator().manual_seed(3)
    video = torch.randint(0, 256, (len(lengths), 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    found = []
    for plan in plans_of(model, lengths, masked):
        torch.manual_seed(4)
        output = model(video, plan)
        model.zero_grad()
        output.loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        found.append((output.terms, gradients))
    (terms, gradients), (roomy_terms, roomy_gradients) = found
    assert terms.keys() == roomy_terms.keys()
    assert gradients.keys() == roomy_gradients.keys()
    for name, value in terms.items():
        torch.testing.assert_close(roomy_terms[name], value, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    for name, value in gradients.items():
        apart = (roomy_gradients[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert apart < 2e-5 or value.norm() < 1e-6, name


def test_tail_rows_are_in_no_sequence_and_their_words_have_no_label():
    model = make_model("fastvtp", matching_negatives="hard")
    bare, roomy = plans_of(model, (6, 4, 9), 0.5)
    assert bare.mismatched is not None
    assert roomy.mismatched is not None
    assert len(bare.text_ids) == 2 * 19 < len(roomy.text_ids) == 2 * 20
    for one, other in ((bare.sources.rows, roomy.sources.rows), (bare.text_ids, roomy.text_ids)):
        assert torch.equal(one, other[: len(one)])
    assert torch.equal(bare.packing.cu_seqlens, roomy.packing.cu_seqlens)
    assert len(roomy.sources) == len(bare.sources) + 2
    assert len(roomy.mismatched.clip_of_row) == len(bare.mismatched.clip_of_row) + 1
    words = len(bare.word_labels)
    assert torch.equal(roomy.word_labels[:words], bare.word_labels)
    assert (roomy.word_labels[words:] == NO_LABEL).all()
    assert len(roomy.word_rows.unique()) == len(roomy.word_rows)
    assert roomy.packing.max_seqlen == 64 > bare.packing.max_seqlen


def drawn_lengths(clips: int, seed: int) -> list[int]:
    """Of captions with 3 to 32 tokens, 24 of them on average."""
    return np.random.default_rng(seed).binomial(29, 21 / 29, clips).__add__(3).clip(3, 32).tolist()


def shapes_of(plan: Any) -> tuple[Any, ...]:
    """The shapes of all tensors of a plan, and its host integers."""
    values = [getattr(plan, entry.name) for entry in dataclasses.fields(plan)]
    return tuple(
        tuple(value.shape)
        if isinstance(value, Tensor)
        else shapes_of(value)
        if dataclasses.is_dataclass(value)
        else value
        for value in values
    )


@pytest.mark.parametrize(("preset", "negatives"), VARIANTS)
@pytest.mark.parametrize("clips", [16, 64])
def test_a_run_sees_few_shapes_and_wastes_few_rows(preset, negatives, clips):
    """Of ViT-B's layout at 224 pixels, 90 % of whose 1568 tubelets are masked."""
    sizes = {"image_size": 224, "num_frames": 16, "tubelet": (2, 16, 16), "video_mask_ratio": 0.9, "depth": 1}
    model = make_model(preset, matching_negatives=negatives, **{**sizes, "text_mask_ratio": 0.75})
    shapes, shares = set(), []
    for seed in range(30):
        lengths = drawn_lengths(clips, seed)
        plan = model.plan(captions_of(lengths, seed), lengths, torch.arange(clips), seed=1, step=seed)
        shapes.add(shapes_of(plan))
        rows = [(plan.packing, len(plan.sources))]
        if plan.mismatched is not None:
            rows.append((plan.mismatched.packing, len(plan.mismatched.clip_of_row)))
        real = sum(int(packing.cu_seqlens[-1]) for packing, _ in rows)
        shares.append(1 - real / sum(capacity for _, capacity in rows))
        assert plan.capacity_waste() == pytest.approx(shares[-1])
    assert len(shapes) <= (6 if clips == 64 else 10), shapes
    assert np.mean(shares) < 0.02
    assert max(shares) < 0.03


def test_no_row_is_named_twice_where_gradients_are_copied_and_few_takers_share_one():
    """Rows behind the real ones included, of padded captions, too."""
    official, lengths = make_model("official"), (9, 2, 5, 3, 3)
    bare, plan = plans_of(official, lengths, 0.5)
    keys, last = plan.packing.key_rows, plan.packing.cu_seqlens_k
    assert keys is not None
    assert last is not None
    assert keys.sort().values.tolist() == list(range(len(plan.sources)))
    assert bare.packing.key_rows is not None
    assert torch.equal(keys[: last[-1]], bare.packing.key_rows)
    model = make_model("fastvtp", matching_negatives="hard")
    plan = plans_of(model, (60,) * 8 + (61,), 0.5)[1]
    assert plan.mismatched is not None
    tail = plan.mismatched.clip_0_sources[int(plan.mismatched.packing.cu_seqlens[-1]) :]
    assert len(tail) == len(tail.unique()) > 1


def test_a_plan_of_a_new_size_is_told_once(caplog):
    model = make_model("fastvtp")
    with caplog.at_level("DEBUG", logger="fastvtp.systems.simvtp.model"):
        for lengths in ((6, 4, 9), (6, 5, 8), (30, 20, 40)):
            model.plan(captions_of(lengths), lengths, torch.arange(3), seed=1, step=0)
    assert [line.split(":")[0] for line in caplog.messages] == [
        "3 clips with 19 tokens of text",
        "3 clips with 90 tokens of text",
    ]


@pytest.mark.parametrize(
    ("preset", "negatives"),
    [VARIANTS[0], VARIANTS[3], *(pytest.param(*each, marks=pytest.mark.long) for each in VARIANTS[1:3])],
)
def test_one_graph_serves_all_captions(preset, negatives):
    """As one graph, and at most two more where shapes change after all."""
    torch._dynamo.reset()
    model = make_model(preset, matching_negatives=negatives, **{"depth": 1, "decoder_depth": 1})
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    video = torch.zeros(4, 4, 32, 32, 3, dtype=torch.uint8)
    compilations = []
    for step in range(20):
        lengths = drawn_lengths(4, step)
        plan = model.plan(captions_of(lengths, step), lengths, torch.arange(4) + step, seed=1, step=step)
        loss = compiled(video, plan).loss
        if step in (0, 9, 19):
            torch.testing.assert_close(loss, model(video, plan).loss, rtol=1e-5, atol=1e-5)
            loss.backward()
        compilations.append(counter.frame_count)
    assert compilations[-1] == compilations[5] <= 3, compilations


@pytest.mark.long
@pytest.mark.parametrize("clips", [4, 16])
@pytest.mark.parametrize(("preset", "negatives"), VARIANTS)
def test_sixty_batches_need_at_most_three_graphs(preset, negatives, clips):
    """Of 3 to 32 tokens, backward passes included."""
    torch._dynamo.reset()
    model = make_model(preset, matching_negatives=negatives, **{"depth": 1, "decoder_depth": 1})
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    video = torch.zeros(clips, 4, 32, 32, 3, dtype=torch.uint8)
    compilations = []
    for step in range(60):
        lengths = np.random.default_rng(step).integers(3, 33, clips).tolist()
        plan = model.plan(captions_of(lengths, step), lengths, torch.arange(clips) + step, seed=1, step=step)
        compiled(video, plan).loss.backward()
        compilations.append(counter.frame_count)
    assert compilations[-1] == compilations[5] <= 3, compilations
