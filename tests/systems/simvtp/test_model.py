import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import fastvtp
from fastvtp.modules.losses import random_mismatch
from fastvtp.modules.packing import (
    Packing,
    SequenceBuilder,
    span_rows,
)
from fastvtp.modules.rows import segment_mean
from fastvtp.systems.catalogue import model_config
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp_kernels import hard_negatives

SMALL = {
    "image_size": 32,
    "num_frames": 4,
    "tubelet": (2, 8, 8),
    "depth": 2,
    "vocab_size": 50,
    "mask_token_id": 4,
    "special_token_ids": (0, 1, 2, 3, 4),
    "text_dropout": 0.0,
    "video_mask_ratio": 0.75,
    "text_mask_ratio": 0.5,
}
LENGTHS = (6, 4, 9)


def make_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    captions = [
        torch.cat([torch.tensor([2]), torch.randint(5, 50, (n - 2,), generator=generator), torch.tensor([3])])
        for n in LENGTHS
    ]
    video = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return video, torch.cat(captions)


def make_model(preset: str = "fastvtp", **overrides) -> SimVTP:
    torch.manual_seed(0)
    return fastvtp.create_model("simvtp_tiny", preset=preset, **{**SMALL, **overrides}).eval()


def make_plan(model: SimVTP, input_ids: torch.Tensor, step: int = 0):
    return model.plan(input_ids, LENGTHS, torch.arange(3), seed=1, step=step)


def alone(model: SimVTP, *parts: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of one sequence in a call of its own; padding rows look at the others, one row at a time, and count too."""
    x_ND = torch.cat(parts)
    encoded = [model.encoder(x_ND, Packing.uniform(1, len(x_ND)))]
    for row in padding if padding is not None else ():
        # as the last of a sequence it must not be a key: keys are all rows but itself
        keys = Packing(
            torch.tensor([0, len(x_ND) + 1]).int(),
            len(x_ND) + 1,
            torch.arange(len(x_ND)),
            torch.tensor([0, len(x_ND)]).int(),
        )
        encoded.append(model.encoder(torch.cat([x_ND, row[None]]), keys)[-1:])
    return torch.cat(encoded).mean(0)


@pytest.mark.parametrize("negatives", ["random", "hard"])
@pytest.mark.parametrize("preset", ["official", "fastvtp"])
def test_packed_passes_equal_separate_encoder_calls(preset, negatives):
    """The packed call, and the match logits, against plain calls, written with a loop over the samples."""
    model = make_model(preset, matching_negatives=negatives)
    video, input_ids = make_batch()
    plan = make_plan(model, input_ids)
    output = model(video, plan)
    packed = segment_mean(output.encoded, plan.packing.cu_seqlens)

    clips = model.video_embeddings(video, plan.visible)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    masked = model.text_embeddings(plan.text_ids[:19], positions).split(LENGTHS)
    clean = model.text_embeddings(input_ids, positions).split(LENGTHS)
    padding = [None] * 3
    if preset == "official":
        padding = [model.text_embeddings(torch.zeros(9 - n).long(), torch.arange(n, 9)) for n in LENGTHS]
    contrast_text = clean if preset == "fastvtp" else masked
    joint = [alone(model, clips[i], masked[i], padding=padding[i]) for i in range(3)]
    expected = joint + [alone(model, clips[i]) for i in range(3)]
    expected += [alone(model, contrast_text[i], padding=padding[i]) for i in range(3)]
    text, clip = expected[6:9], expected[3:6]
    if negatives == "random":
        mismatch = random_mismatch(np.arange(3), seed=1, step=0)
    else:
        features = [
            normalize(torch.stack(x), dim=-1)
            for x in (
                [model.contrast.text_projection(t) for t in text],
                [model.contrast.video_projection(c) for c in clip],
            )
        ]
        mismatch = hard_negatives(*features, model.contrast.logit_scale(), seed=1, step=0).b_for_a.numpy()
    wrong = [alone(model, clips[mismatch[i]], masked[i], padding=padding[i]) for i in range(3)]
    if negatives == "random":
        expected += wrong
    torch.testing.assert_close(packed, torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.match_logits, model.match_head(torch.stack(joint + wrong)), rtol=1e-4, atol=1e-5)
    assert output.match_labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_words_predicted_are_the_masked_ones():
    model = make_model()
    _, input_ids = make_batch()
    plan = make_plan(model, input_ids)
    masked_ids = plan.text_ids[: len(input_ids)]
    hidden = masked_ids != input_ids
    assert hidden.any()
    assert (masked_ids[hidden] == 4).all()
    assert torch.equal(plan.word_labels, input_ids[hidden])
    # the packed row of a masked word holds exactly its embedding from the pool
    pool_rows = plan.sources.rows[plan.word_rows] - plan.visible.numel()
    assert torch.equal(pool_rows, hidden.nonzero().squeeze(1))
    assert not hidden[(input_ids == 2) | (input_ids == 3)].any()


def test_masked_tubelets_never_reach_the_encoder():
    """Rule 1: repainting every masked tubelet changes no feature and no prediction, only the pixel loss."""
    model = make_model()
    video, input_ids = make_batch()
    plan = make_plan(model, input_ids)
    before = model(video, plan)
    repainted = video.clone()
    _, h, w = model.config.grid
    for clip, masked in enumerate(plan.predicted.tolist()):
        for token in masked:
            ti, yi, xi = token // (h * w), token // w % h, token % w
            repainted[clip, 2 * ti : 2 * ti + 2, 8 * yi : 8 * yi + 8, 8 * xi : 8 * xi + 8] = torch.randint(
                0, 256, (2, 8, 8, 3)
            )
    after = model(repainted, plan)
    assert torch.equal(before.pixel_prediction, after.pixel_prediction)
    assert torch.equal(before.word_features, after.word_features)
    assert torch.equal(before.terms["loss/contrastive"], after.terms["loss/contrastive"])
    assert not torch.equal(before.terms["loss/pixel"], after.terms["loss/pixel"])


def test_masks_follow_the_sample_not_the_batch():
    model = make_model()
    _, input_ids = make_batch()
    whole = make_plan(model, input_ids)
    pair = model.plan(input_ids[6:], LENGTHS[1:], torch.tensor([1, 2]), seed=1, step=0)
    assert torch.equal(whole.visible[1:], pair.visible)
    assert torch.equal(whole.text_ids[6:19], pair.text_ids[:13])
    assert not torch.equal(whole.visible, make_plan(model, input_ids, step=1).visible)


def test_every_parameter_gets_a_gradient():
    model = make_model()
    video, input_ids = make_batch()
    model(video, make_plan(model, input_ids)).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_a_few_steps_reduce_every_loss():
    model = make_model().train()
    video, input_ids = make_batch()
    plan = make_plan(model, input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = model(video, plan).terms
    for _ in range(30):
        output = model(video, plan)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("loss/pixel", "loss/word", "loss/contrastive", "loss/matching"):
        assert output.terms[name] < first[name], name


def test_encode_text_equals_the_text_only_pass():
    model = make_model()
    video, input_ids = make_batch()
    cu_seqlens = torch.tensor([0, 6, 10, 19], dtype=torch.int32)
    features = model.encode_text(input_ids, cu_seqlens, 9)
    alone = model.encode_text(input_ids[6:10], torch.tensor([0, 4], dtype=torch.int32), 4)
    torch.testing.assert_close(features[1:2], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(model.encode_video(video).norm(dim=-1), torch.ones(3))


def test_bad_input_is_named():
    model = make_model()
    video, input_ids = make_batch()
    with pytest.raises(ValueError, match="sum of text_lengths"):
        model.plan(input_ids[:-1], LENGTHS, torch.arange(3), seed=0, step=0)
    with pytest.raises(ValueError, match=r"video must be \[B, 4, 32, 32, 3\]"):
        model(video[:, :, :16], make_plan(model, input_ids))
    with pytest.raises(ValueError, match="image_size 33 is not a multiple"):
        dataclasses.replace(model.config, image_size=33)
    with pytest.raises(ValueError, match="video_mask_ratio"):
        SimVTPConfig(video_mask_ratio=1.0)


def test_registry_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'simvtp_base'"):
        fastvtp.create_model("simvtp_bass")
    with pytest.raises(ValueError, match="did you mean 'image_size'"):
        fastvtp.create_model("simvtp_tiny", image_sice=32)
    with pytest.raises(ValueError, match="no preset 'other'"):
        model_config("simvtp_tiny", preset="other")
    sizes = ("base", "huge", "large", "small", "tiny")
    alpro = ["alpro_base", "alpro_prompter_base", "alpro_prompter_tiny", "alpro_tiny"]
    masked = ["videomae_giant", *(f"{name}_{size}" for name in ("simvtp", "videomae") for size in sizes)]
    lengths = ("base", "giant", "large", "tiny")
    prism = [f"{name}_{size}" for name in ("prism_student", "videoprism", "videoprism_lvt") for size in lengths]
    assert fastvtp.list_models() == sorted([*alpro, *masked, *prism])


def test_base_has_the_papers_size():
    """ViT-B with a 4-layer decoder of width 384: counted on the meta device."""
    with torch.device("meta"):
        model = SimVTP(model_config("simvtp_base", preset="official"))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    # per block: matrices 12 d^2; q, v, output biases 3d; MLP biases 5d; two norms 4d. Then the final norm.
    assert encoder == 12 * (12 * 768**2 + 12 * 768) + 2 * 768
    assert model.config.grid == (8, 14, 14)


def test_a_step_repeats_bit_for_bit_on_several_threads():
    """Rows that stand in several sequences collect several gradients: their sum must not depend on the threads."""
    torch.manual_seed(0)
    model = make_model(width=192)
    lengths = (20,) * 24
    input_ids = torch.randint(5, 50, (480,))
    video = torch.randint(0, 256, (24, 4, 32, 32, 3), dtype=torch.uint8)
    plan = model.plan(input_ids, lengths, torch.arange(24), seed=0, step=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(6):
            model.zero_grad()
            model(video, plan).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(threads)
    for repeat in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], repeat, strict=True))


def test_a_clip_that_stands_twice_is_no_negative_of_itself():
    """Small data sets fill a batch with repeats: they are right answers of the contrast, never a mismatch."""
    ids = np.array([7, 3, 7, 5])
    draws = np.stack([random_mismatch(ids, seed=0, step=s) for s in range(200)])
    assert (ids[draws] != ids).all()
    assert set(draws[:, 0]) == {1, 3}
    # nothing but one clip: no mismatch to be had, and the matching loss says so by leaving the row out
    assert random_mismatch(np.array([4, 4]), seed=0, step=0).tolist() == [0, 1]
    video, input_ids = make_batch()
    for negatives in ("random", "hard"):
        model = make_model(matching_negatives=negatives)
        plan = model.plan(input_ids[:10], LENGTHS[:2], torch.tensor([4, 4]), seed=0, step=0)
        output = model(video[:2], plan)
        assert output.match_labels.tolist() == [1, 1, -100, -100]
        assert output.loss.isfinite()

    model = make_model()
    video, input_ids = make_batch()
    twice_video, twice_ids = torch.cat([video, video[:1]]), torch.cat([input_ids, input_ids[:6]])
    plan = model.plan(twice_ids, (*LENGTHS, 6), torch.tensor([0, 1, 2, 0]), seed=1, step=0)
    lonely = model.plan(twice_ids, (*LENGTHS, 6), torch.tensor([0, 1, 2, 3]), seed=1, step=0)
    term = "loss/contrastive"
    assert model(twice_video, plan).terms[term] != model(twice_video, lonely).terms[term]


def test_every_mismatch_is_wrong_and_none_is_favoured():
    draws = torch.stack([torch.from_numpy(random_mismatch(np.arange(5), seed=3, step=s)) for s in range(4000)])
    assert not (draws == torch.arange(5)).any()
    counts = torch.stack([torch.bincount(draws[:, i], minlength=5) for i in range(5)])
    assert (counts[~torch.eye(5, dtype=torch.bool)] - 1000).abs().max() < 130  # 4.7 standard deviations


def test_span_rows():
    assert span_rows(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


def test_sequence_builder():
    builder = SequenceBuilder()
    a, b = (np.array([0, 2]), np.array([2, 2])), (np.array([4, 5]), np.array([1, 3]))
    assert builder.add(a, b).tolist() == [0, 3]
    assert builder.add(b).tolist() == [8, 9]
    assert builder.sources().tolist() == [0, 1, 4, 2, 3, 5, 6, 7, 4, 5, 6, 7]
    assert builder.packing().cu_seqlens.tolist() == [0, 3, 8, 9, 12]
    assert builder.packing().max_seqlen == 5
