"""Reconstruction with the other modality given, withheld and foreign, on a tiny model."""

from dataclasses import replace

import pytest
import torch

from fastvtp.ablation.held_out import (
    Clips,
    HeldOut,
    load_clips,
)
from fastvtp.data.annotations import load_annotations
from fastvtp.data.synthetic.scene import BACKGROUND_COLOURS
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.systems.catalogue import build_model, model_config
from fastvtp.systems.simvtp.ablation import reconstruction_scores, score
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.videomae.model import VideoMAEConfig, VideoMAEPlan

SIZES = {
    "width": 48, "depth": 1, "num_heads": 2, "decoder_width": 24, "decoder_num_heads": 2, "image_size": 32,
    "num_frames": 4, "tubelet": (2, 8, 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(captioned_videos) -> CaptionTokenizer:
    captions = [record.captions[0] for record in load_annotations(captioned_videos / "train.jsonl")]
    return CaptionTokenizer.train(captions, vocab_size=300)


@pytest.fixture(scope="module")
def config(tokenizer) -> SimVTPConfig:
    special = tuple(sorted(tokenizer.special_ids))
    return model_config(
        "simvtp_tiny", vocab_size=300, mask_token_id=tokenizer.mask_id, special_token_ids=special, **SIZES
    )


@pytest.fixture(scope="module")
def held_out(captioned_videos, tokenizer, config) -> HeldOut:
    train, test = (
        load_clips(captioned_videos / name, tokenizer, config, limit=limit, num_workers=0, device=torch.device("cpu"))
        for name, limit in (("train.jsonl", 12), ("test.jsonl", 8))
    )
    return HeldOut(train, test, replace(config, video_mask_ratio=0.75, text_mask_ratio=0.5))


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return build_model(config)


def test_clips_do_not_depend_on_the_batches_they_are_read_in(captioned_videos, tokenizer, config):
    path, cpu = captioned_videos / "train.jsonl", torch.device("cpu")
    whole, parts = (
        load_clips(path, tokenizer, config, limit=20, num_workers=0, device=cpu, batch_size=size) for size in (20, 2)
    )
    assert len(parts.batches) == 10
    assert torch.equal(torch.cat([batch.video for batch in parts.batches]), whole.batches[0].video)


def test_clips_come_with_their_labels(held_out):
    assert isinstance(held_out.probe_train, Clips)
    assert sum(len(batch.captions) for batch in held_out.probe_train.batches) == 12
    assert len(held_out.test.labels["motion"]) == 8
    (batch,) = held_out.test.batches
    # objects have none of these colours
    said = [[colour in caption for colour in BACKGROUND_COLOURS] for caption in batch.captions]
    assert held_out.test.labels["background colour"].tolist() == said
    assert len({clip.float().mean().item() for clip in batch.video}) == 8


def test_scores_of_a_whole_model_and_of_its_parts(model, held_out, config):
    scores = score(model, held_out)
    assert {"transfer", "probe/motion", "t2v/R1", "v2t/R5", "retrieval/R1"} <= scores.keys()
    assert {f"word_loss/{world}" for world in ("given", "withheld", "foreign")} <= scores.keys()
    assert score(model, held_out) == scores
    bare = build_model(replace(config, contrastive_weight=0.0, word_weight=0.0))
    found = score(bare, held_out)
    assert "pixel_loss/given" in found
    assert not [name for name in found if name.startswith(("word_", "t2v", "retrieval"))]


def test_given_is_the_loss_of_the_training_forward_with_the_common_masks(model, held_out, config):
    """A model whose own ratios are others is scored with the masks of `held_out`."""
    given = reconstruction_scores(model.eval(), held_out)
    torch.manual_seed(0)
    other = build_model(replace(config, text_mask_ratio=0.2, video_mask_ratio=0.5)).eval()
    assert reconstruction_scores(other, held_out) == given

    (batch,) = held_out.test.batches
    masks = held_out.masks
    torch.manual_seed(0)
    same = build_model(masks).eval()
    plan = same.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=1000, step=0)
    terms = same(batch.video, plan).terms
    assert given["pixel_loss/given"] == pytest.approx(terms["loss/pixel"].item(), rel=1e-6)
    assert given["word_loss/given"] == pytest.approx(terms["loss/word"].item(), rel=1e-6)


def test_only_what_is_withheld_or_foreign_changes(model, held_out):
    """With attention's output switched off no token knows of another: then every input gives the same losses."""
    usual = reconstruction_scores(model.eval(), held_out)
    for kind in ("pixel_loss", "word_loss"):
        assert len({usual[f"{kind}/{world}"] for world in ("given", "withheld", "foreign")}) == 3
    for block in model.encoder.blocks:
        block.attn.proj.weight.data.zero_()
    deaf = reconstruction_scores(model, held_out)
    for kind in ("pixel_loss", "word_loss", "word_accuracy"):
        for world in ("withheld", "foreign"):
            assert deaf[f"{kind}/{world}"] == pytest.approx(deaf[f"{kind}/given"], rel=1e-5)


def test_a_video_model_is_scored_on_pixels_alone_and_as_its_own_forward_does(held_out):
    video = build_model(VideoMAEConfig(decoder_depth=1, **SIZES)).eval()
    scores = score(video, held_out)
    assert {name for name in scores if not name.startswith("probe")} == {"transfer", "pixel_loss/withheld"}
    (batch,) = held_out.test.batches
    masked = replace(video.config, video_mask_ratio=held_out.masks.video_mask_ratio)
    plan = VideoMAEPlan(*masked.draw_masks(batch.sample_ids, seed=1000, step=0))
    expected = video(batch.video, plan).loss.item()
    assert scores["pixel_loss/withheld"] == pytest.approx(expected, rel=1e-6)
