"""`reconstruct` on a tiny random model: what is hidden, what is filled in, and what must stay as it was."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fastvtp
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.pictures import reconstruct
from fastvtp.visualization.reconstruction import ReconstructionExample
from fastvtp_kernels import masked_pixel_loss

TUBELET = (2, 8, 8)
CAPTIONS = [
    "a red star turns left and then a blue square falls",
    "two green circles meet in the middle of the picture",
    "a [MASK] star is behind a yellow [MASK] while nothing moves",
]


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.train(CAPTIONS, vocab_size=150)


def make_model(tokenizer: CaptionTokenizer, **overrides: Any) -> SimVTP:
    torch.manual_seed(0)
    return fastvtp.create_model(
        "simvtp_tiny", width=32, depth=1, num_heads=2, decoder_width=16, decoder_num_heads=2, image_size=32,
        num_frames=4, tubelet=TUBELET, vocab_size=tokenizer.vocab_size, mask_token_id=tokenizer.mask_id,
        pad_token_id=tokenizer.pad_id, special_token_ids=tokenizer.special_ids, video_mask_ratio=0.75,
        text_mask_ratio=0.5, text_dropout=0.5, **overrides,
    )  # fmt: skip


def make_batch(tokenizer: CaptionTokenizer, clips: int = 3) -> VideoTextBatch:
    text = tokenizer.encode_packed(CAPTIONS[:clips], max_length=64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 40, (clips, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return VideoTextBatch(
        video=noise + torch.tensor([60, 100, 140], dtype=torch.uint8),  # channels to be told apart by their means
        input_ids=torch.from_numpy(text.input_ids),
        cu_seqlens=torch.tensor([0, *np.cumsum(text.lengths)], dtype=torch.int32),
        text_lengths=text.lengths,
        max_text_length=max(text.lengths, default=0),
        sample_ids=10 + torch.arange(clips),
        captions=CAPTIONS[:clips],
        step=0,
    )


def cells(video: np.ndarray) -> np.ndarray:
    """[tubelets, values], cut by reshaping."""
    cut = video.reshape(2, 2, 4, 8, 4, 8, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    return cut.reshape(32, -1)


def test_only_hidden_tubelets_are_painted(tokenizer):
    model, batch = make_model(tokenizer), make_batch(tokenizer)
    plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=7, step=0)
    examples = reconstruct(model, tokenizer, batch, seed=7)
    assert len(examples) == 3
    for example, video, masked, visible in zip(
        examples, batch.video.numpy(), plan.predicted.numpy(), plan.visible.numpy(), strict=True
    ):
        assert len(masked) == 24
        assert np.array_equal(example.frames, video)
        assert (cells(example.visible)[masked] == 128).all()
        assert np.array_equal(cells(example.visible)[visible], cells(video)[visible])
        assert np.array_equal(cells(example.reconstruction)[visible], cells(video)[visible])
        assert (cells(example.reconstruction)[masked] != cells(video)[masked]).any(axis=1).all()


def test_painted_values_are_the_prediction_in_the_units_of_the_loss(tokenizer):
    """The pixel loss, recomputed from the picture: only rounding to uint8 may part them."""
    model, batch = make_model(tokenizer).eval(), make_batch(tokenizer)
    examples = reconstruct(model, tokenizer, batch, seed=7)
    with torch.inference_mode():
        plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=7, step=0)
        prediction = model(batch.video, plan).pixel_prediction
    loss = masked_pixel_loss(
        prediction,
        batch.video,
        plan.predicted,
        tubelet=TUBELET,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        normalize="patch_channel",
    )
    squares = []
    for example, masked in zip(examples, plan.predicted.numpy(), strict=True):
        true, painted = (
            cells(video)[masked].reshape(24, -1, 3) / 255 for video in (example.frames, example.reconstruction)
        )
        squares.append(((painted - true) / true.std(axis=1, ddof=1, keepdims=True)) ** 2)
    assert np.mean(squares) == pytest.approx(loss.item(), rel=0.02)


def words(example: ReconstructionExample) -> list[tuple[str, str, str]]:
    captions = (example.caption, example.masked_caption, example.predicted_caption)
    return list(zip(*(caption.split() for caption in captions), strict=True))


def test_only_masked_words_are_predicted_and_a_literal_mask_token_is_none(tokenizer):
    model, batch = make_model(tokenizer), make_batch(tokenizer)
    with torch.no_grad():  # a word head that says the same word everywhere
        model.word_head.weight.zero_()
        model.word_head.bias.zero_()
        model.word_head.bias[tokenizer.encode(["star"], 8)[0][1]] = 1.0
    guess = tokenizer.tokens(tokenizer.encode(["star"], 8)[0][1:2])[0]
    examples = reconstruct(model, tokenizer, batch, seed=7)
    plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=7, step=0)

    for example, ids in zip(examples, tokenizer.encode(CAPTIONS, 64), strict=True):
        assert example.caption.split() == tokenizer.tokens(ids[1:-1])
        for true, seen, predicted in words(example):
            assert seen in (true, "[MASK]")
            assert predicted == (true if seen == true else guess)
    assert sum(true == "[MASK]" for true, _, _ in words(examples[2])) == 2
    hidden = [true for example in examples for true, seen, _ in words(example) if seen != true]
    assert hidden == tokenizer.tokens(plan.word_labels[plan.word_labels >= 0].numpy())
    assert 0 < len(hidden) < sum(len(words(example)) for example in examples)


def test_each_prediction_stands_at_its_own_word(tokenizer):
    """A word head that reads the position's own label back: any shift of the rows would show."""
    model, batch = make_model(tokenizer), make_batch(tokenizer)
    plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=7, step=0)
    labels = plan.word_labels[plan.word_labels >= 0]
    oracle = torch.nn.functional.one_hot(labels, tokenizer.vocab_size).float()
    model.word_head.register_forward_hook(lambda *_: oracle)
    for example in reconstruct(model, tokenizer, batch, seed=7):
        assert example.masked_caption != example.caption
        assert example.predicted_caption == example.caption


@pytest.mark.parametrize("training", [True, False])
def test_every_training_flag_is_restored_also_after_an_error(tokenizer, training):
    model, batch = make_model(tokenizer).train(training), make_batch(tokenizer)
    model.encoder.train(not training)
    before = [module.training for module in model.modules()]
    reconstruct(model, tokenizer, batch, seed=7)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="one per channel"):
        reconstruct(model, tokenizer, replace(batch, video=batch.video[..., :1]), seed=7)
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()


def same(one: list[ReconstructionExample], other: list[ReconstructionExample]) -> bool:
    return all(
        np.array_equal(getattr(a, field), getattr(b, field))
        for a, b in zip(one, other, strict=True)
        for field in ("visible", "reconstruction", "masked_caption", "predicted_caption")
    )


def test_the_seed_alone_decides(tokenizer):
    model, batch = make_model(tokenizer).train(), make_batch(tokenizer)  # with dropout, were it left on
    first = reconstruct(model, tokenizer, batch, seed=7)
    torch.manual_seed(1)
    assert same(first, reconstruct(model, tokenizer, batch, seed=7))
    other = reconstruct(model, tokenizer, batch, seed=8)
    assert not np.array_equal(first[0].visible, other[0].visible)
    assert [e.masked_caption for e in first] != [e.masked_caption for e in other]


def test_a_single_clip_is_enough(tokenizer):
    (example,) = reconstruct(make_model(tokenizer), tokenizer, make_batch(tokenizer, 1), seed=7)
    assert not np.array_equal(example.reconstruction, example.visible)


def test_example_fields_must_fit_each_other(tokenizer):
    example = reconstruct(make_model(tokenizer), tokenizer, make_batch(tokenizer), seed=7)[0]
    with pytest.raises(ValueError, match=r"visible must be uint8 \[T, H, W, 3\].*\(4, 32, 16, 3\)"):
        replace(example, visible=np.zeros((4, 32, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"masked_caption has 2 tokens, caption \d+: join"):
        replace(example, masked_caption="too short")
