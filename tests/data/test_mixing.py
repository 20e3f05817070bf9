from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import Image

from fastvtp.data.annotations import load_annotations
from fastvtp.data.loader import VideoTextBatch, VideoTextLoader
from fastvtp.data.mixing import (
    BatchSource,
    MixedLoader,
    batches_before,
)
from fastvtp.data.stream import Batches
from fastvtp.data.wordpiece import CaptionTokenizer
from tests.data.loaders import make_loader

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


@pytest.fixture
def pictures(tmp_path):
    """A list of one-coloured pictures in three formats, of different sizes."""
    lines = []
    for suffix, (name, colour) in zip(("jpg", "png", "webp"), COLOURS.items(), strict=True):
        Image.new("RGB", (64, 48 + len(name)), colour).save(tmp_path / f"{name}.{suffix}")
        lines.append(f'{{"image": "{name}.{suffix}", "caption": "all {name}"}}\n')
    (tmp_path / "pictures.jsonl").write_text("".join(lines))
    return tmp_path / "pictures.jsonl"


def loader_of(records, num_frames, **more):
    tokenizer = CaptionTokenizer.train([caption for record in records for caption in record.captions], vocab_size=300)

    def make(start_step: int, num_steps: int) -> VideoTextLoader:
        steps = {"start_step": start_step, "num_steps": num_steps}
        clips = {"num_frames": num_frames, "image_size": 32, "num_workers": 0}
        return make_loader(records, tokenizer, batch_size=3, max_text_length=16, train=True, **clips, **steps, **more)

    return make


def test_pictures_come_through_the_loader(pictures):
    records = load_annotations(pictures)
    batch = next(iter(loader_of(records, 1)(0, 1)))
    assert batch.video.shape == (3, 1, 32, 32, 3)
    for clip, caption in zip(batch.video, batch.captions, strict=True):
        expected = torch.tensor(COLOURS[caption.removeprefix("all ")])
        assert (clip.float().mean((0, 1, 2)) - expected).abs().max() < 8


def steps_of(start_step: int, num_steps: int) -> Batches:
    return Batches(batch_size=3, train=True, start_step=start_step, num_steps=num_steps)


def mixture(videos, images, image_share):
    return [BatchSource(videos, 1 - image_share), BatchSource(images, image_share, "image")]


def test_kinds_alternate_by_step_and_a_stream_resumes_anywhere(pictures, captioned_videos):
    videos = loader_of(load_annotations(captioned_videos / "train.jsonl"), 4)
    images = loader_of(load_annotations(pictures), 1)

    def batches(start_step: int, num_steps: int) -> list[VideoTextBatch]:
        with MixedLoader(mixture(videos, images, 0.4), steps_of(start_step, num_steps)) as mixed:
            return list(mixed)

    whole = batches(0, 5)
    assert [batch.kind for batch in whole] == ["video", "video", "image", "video", "image"]
    assert [batch.step for batch in whole] == [0, 1, 2, 3, 4]
    assert [batch.video.shape[1] for batch in whole] == [4, 4, 1, 4, 1]
    with images(1, 1) as second:
        assert_equal(replace(next(iter(second)), step=4, kind="image"), whole[4])
    for start in (2, 3):
        for batch, again in zip(whole[start:], batches(start, 5 - start), strict=True):
            assert_equal(again, batch)


def test_repeated_pictures_are_clips_of_equal_frames(pictures, captioned_videos):
    videos = loader_of(load_annotations(captioned_videos / "train.jsonl"), 4)
    images = loader_of(load_annotations(pictures), 1)
    sources = [BatchSource(videos, 0.5), BatchSource(images, 0.5, "image", repeat=4)]
    with MixedLoader(sources, steps_of(0, 2)) as mixed, images(0, 1) as alone:
        video, repeated = mixed
        (single,) = alone
    assert (video.kind, video.video.shape) == ("video", (3, 4, 32, 32, 3))
    assert (repeated.kind, repeated.video.shape) == ("image", (3, 4, 32, 32, 3))
    assert torch.equal(repeated.video, single.video.expand_as(repeated.video))
    assert not torch.equal(video.video, video.video[:, :1].expand_as(video.video))


def assert_equal(first: VideoTextBatch, second: VideoTextBatch) -> None:
    assert (first.captions, first.step, first.kind) == (second.captions, second.step, second.kind)
    for name in ("video", "input_ids", "sample_ids"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_several_sets_of_videos_take_turns(captioned_videos):
    """What a set shows is what it would show alone, whatever the others do."""
    records = load_annotations(captioned_videos / "train.jsonl")
    sets = [loader_of(records[start : start + 4], 4) for start in (0, 4, 8)]
    sources = [BatchSource(loader, share) for loader, share in zip(sets, (2, 1, 1), strict=True)]
    with MixedLoader(sources, steps_of(0, 8)) as mixed:
        found = list(mixed)
    captions = [
        {caption for record in records[start : start + 4] for caption in record.captions} for start in (0, 4, 8)
    ]
    turns = [next(i for i, known in enumerate(captions) if set(batch.captions) <= known) for batch in found]
    assert [turns.count(number) for number in range(3)] == [4, 2, 2]
    assert turns != sorted(turns)
    with sets[1](0, 2) as alone:
        for batch, step in zip(alone, [step for step, turn in enumerate(turns) if turn == 1], strict=True):
            assert_equal(replace(batch, step=step), found[step])


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (5, 2, 1), (1, 1, 1, 1), (7,)])
def test_the_shares_are_kept_at_any_length(shares):
    counts = [batches_before(step, shares) for step in range(101)]
    for step, (before, after) in enumerate(pairwise(counts)):
        assert sum(before) == step
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(shares) - 1) + [1]
    for step, row in enumerate(counts):
        wanted = [step * share / sum(shares) for share in shares]
        assert all(abs(count - exact) < len(shares) for count, exact in zip(row, wanted, strict=True))


@pytest.mark.parametrize("shares", [(3, 1), (0.5, 0.3, 0.2)])
def test_a_turn_is_of_one_source(shares):
    """What an optimizer step accumulates stems from one set, also where a run resumes within a turn."""
    turns = [batches_before(turn, shares) for turn in range(21)]
    counts = [batches_before(step, shares, 4) for step in range(81)]
    assert counts[::4] == [[4 * count for count in turn] for turn in turns]
    sources = [[a - b for b, a in zip(before, after, strict=True)].index(1) for before, after in pairwise(counts)]
    assert all(len(set(sources[start : start + 4])) == 1 for start in range(0, 80, 4))
    assert len(set(sources)) == len(shares)


def test_ranks_take_turns_in_the_stream_of_one(pictures, captioned_videos):
    """Two batches a step, one after the other or on two ranks: the same batches under the same numbers."""
    lists = [load_annotations(captioned_videos / "train.jsonl"), load_annotations(pictures)]

    def stream(run: int, **ranks: int) -> list[VideoTextBatch]:
        loaders = [loader_of(records, frames, **ranks) for records, frames in zip(lists, (4, 1), strict=True)]
        batches = replace(steps_of(0, 4 * run), **ranks)
        with MixedLoader(mixture(*loaders, 0.5), batches, run=run) as mixed:
            return list(mixed)

    alone, ranks = stream(2), [stream(1, rank=rank, world_size=2) for rank in range(2)]
    assert [batch.step for batch in alone] == list(range(8))
    assert [batch.kind for batch in alone] == ["video"] * 2 + ["image"] * 2 + ["video"] * 2 + ["image"] * 2
    for number, batch in enumerate(alone):
        assert_equal(ranks[number % 2][number // 2], batch)


def test_bad_files_of_both_are_named(pictures, captioned_videos):
    bad = pictures.with_name("red.jpg")
    bad.write_bytes(b"no picture")
    videos = loader_of(load_annotations(captioned_videos / "train.jsonl"), 4)
    images = loader_of(load_annotations(pictures), 1)
    with MixedLoader(mixture(videos, images, 0.5), steps_of(0, 2)) as mixed:
        assert len(list(mixed)) == 2
        assert mixed.bad_files.keys() == {str(bad)}
        assert mixed.wait_seconds > 0
