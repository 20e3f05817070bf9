import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.source import NoDecodableClipError
from fastvtp.data.stream import Batches, SampleStream
from fastvtp.data.wordpiece import CaptionTokenizer
from tests.data.clips import (
    damage_packet,
    frame_numbers,
    truncate,
    write_audio,
    write_clip,
)
from tests.data.loaders import make_loader

NUM_GOOD = 20
SPACING = 8  # clip i carries the numbers from SPACING * i on
NUM_FRAMES = 8

REASONS = {
    "moov_at_end.mp4": "truncated: the index (moov) of the mp4 is missing",
    "faststart.mp4": "truncated: the last",
    "audio_only.mp4": "no video stream",
    "zero_bytes.mp4": "zero bytes",
    "text.mp4": "not a video",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    paths = [write_clip(folder / f"{i:02}.mp4", NUM_FRAMES, first=SPACING * i) for i in range(NUM_GOOD)]
    return [VideoRecord(path.stem, str(path), (f"clip {path.stem}",)) for path in paths]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    truncate(write_clip(folder / "whole.mp4"), folder / "moov_at_end.mp4", 0.6)
    moov_first = write_clip(folder / "moov_first.mp4", container_options={"movflags": "faststart"})
    truncate(moov_first, folder / "faststart.mp4", 0.8)
    write_audio(folder / "audio_only.mp4")
    (folder / "zero_bytes.mp4").touch()
    (folder / "text.mp4").write_text("not a film, a letter\n" * 100)
    return [VideoRecord(name, str(folder / name), (f"bad {name}",)) for name in REASONS]


@pytest.fixture(scope="module")
def mixed(good, bad):
    """Bad files spread among the good ones; the first and the last record are bad."""
    records = list(good)
    for place, record in zip((0, 5, 6, 13, len(good) + 4), bad, strict=True):
        records.insert(place, record)
    return records


@pytest.fixture(scope="module")
def tokenizer(mixed):
    return CaptionTokenizer.train([caption for record in mixed for caption in record.captions], 200)


def run(records, tokenizer, **settings):
    defaults = {"batch_size": 5, "num_frames": 4, "max_text_length": 16, "image_size": None, "train": True, "seed": 1}
    with make_loader(records, tokenizer, **{**defaults, **settings}) as loader:
        return list(loader), loader.bad_files


def shown(batches):
    """By the frames themselves: which good clip each row of the batches shows."""
    return [frame_numbers(clip)[0] // SPACING for batch in batches for clip in batch.video.numpy()]


@pytest.fixture(scope="module")
def epoch(mixed, tokenizer):
    """One epoch of training, 25 records in 5 steps, made in this process."""
    return run(mixed, tokenizer, num_steps=5, num_workers=0)


def test_exactly_the_bad_files_are_named_each_with_its_reason(epoch, bad):
    _, bad_files = epoch
    assert list(bad_files) == sorted(record.video for record in bad)
    for record in bad:
        assert bad_files[record.video].startswith(REASONS[record.id])


def test_an_epoch_runs_through_and_every_good_clip_is_shown(epoch, mixed):
    batches, _ = epoch
    assert [len(batch.captions) for batch in batches] == [5] * 5
    used = [mixed[index] for batch in batches for index in batch.sample_ids.tolist()]
    assert [f"{clip:02}" for clip in shown(batches)] == [record.id for record in used]
    assert [caption for batch in batches for caption in batch.captions] == [record.captions[0] for record in used]
    assert {record.id for record in used} == {f"{i:02}" for i in range(NUM_GOOD)}


def test_good_samples_are_what_they_are_without_bad_files(epoch, mixed, good, bad, tokenizer):
    repaired = [good[0] if record in bad else record for record in mixed]
    batches, _ = epoch
    others, none_bad = run(repaired, tokenizer, num_steps=5, num_workers=0)
    assert none_bad == {}
    unchanged = 0
    for batch, other in zip(batches, others, strict=True):
        rows = (batch.sample_ids == other.sample_ids).nonzero().flatten()
        unchanged += len(rows)
        torch.testing.assert_close(batch.video[rows], other.video[rows], rtol=0, atol=0)
    assert unchanged == NUM_GOOD


@pytest.mark.parametrize("num_workers", [1, 2])
def test_replacements_do_not_depend_on_workers(epoch, mixed, tokenizer, num_workers):
    batches, bad_files = run(mixed, tokenizer, num_steps=5, num_workers=num_workers)
    assert bad_files == epoch[1]
    for batch, reference in zip(batches, epoch[0], strict=True):
        assert batch.sample_ids.tolist() == reference.sample_ids.tolist()
        np.testing.assert_array_equal(batch.video, reference.video)


def test_replacements_survive_a_resume(epoch, mixed, tokenizer):
    batches, _ = run(mixed, tokenizer, start_step=2, num_steps=3, num_workers=0)
    for batch, reference in zip(batches, epoch[0][2:], strict=True):
        np.testing.assert_array_equal(batch.video, reference.video)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_leaves_bad_files_out(mixed, bad, tokenizer, num_workers):
    batches, bad_files = run(mixed, tokenizer, train=False, num_workers=num_workers)
    assert shown(batches) == list(range(NUM_GOOD))
    kept = [i for i, record in enumerate(mixed) if record not in bad]
    assert [index for batch in batches for index in batch.sample_ids.tolist()] == kept
    assert list(bad_files) == sorted(record.video for record in bad)
    for batch in batches:
        assert len(batch.captions) == len(batch.text_lengths) == len(batch.cu_seqlens) - 1 == len(batch.video)


def test_a_batch_of_bad_files_alone_is_skipped_in_evaluation(good, bad, tokenizer):
    batches, _ = run([*bad, *good[:3]], tokenizer, train=False, num_workers=0)
    assert [(batch.step, len(batch.captions)) for batch in batches] == [(1, 3)]


def test_each_bad_file_is_warned_of_once(mixed, bad, tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="fastvtp.data.notes"):
        run(mixed, tokenizer, num_steps=15, num_workers=0)
    warned = sorted(record.getMessage().split(": ")[0] for record in caplog.records)
    assert warned == sorted(record.video for record in bad)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_but_bad_files_ends_in_one_clear_line(bad, tokenizer, num_workers):
    with pytest.raises(NoDecodableClipError) as caught:
        run(bad, tokenizer, num_steps=5, num_workers=num_workers)
    message = str(caught.value)
    assert message.startswith(f"{len(bad)} videos in a row cannot be decoded, the last: ")
    assert any(record.video in message for record in bad)
    assert "\n" not in message


def test_what_stands_in_is_drawn_without_repetition():
    stream = SampleStream(7, Batches(batch_size=1, train=True, seed=5))
    for number in range(10):
        tried = [stream.draw(number, attempt)[0] for attempt in range(7)]
        assert sorted(tried) == list(range(7))
    assert len({tuple(stream.draw(number, attempt)[0] for attempt in range(7)) for number in range(7)}) > 3
    # and what is random about a replacement is not what chose it
    captions = [stream.draw(number, 1)[1].integers(7) == stream.draw(number, 1)[0] for number in range(60)]
    assert sum(captions) < 30


def test_a_set_of_which_most_is_missing_goes_on(good, tokenizer):
    missing = [replace(good[0], id=str(n), video=f"{good[0].video}.{n}") for n in range(7 * len(good) // 3)]
    batches, bad_files = run([*missing, *good], tokenizer, num_steps=120, num_workers=0)
    assert len(batches) == 120
    assert bad_files.keys() <= {record.video for record in missing}


@pytest.fixture(scope="module")
def partly_damaged(tmp_path_factory):
    """Five clips that DALI decodes on a CPU; number 2 opens, but its last frames cannot be decoded."""
    folder, vp9 = tmp_path_factory.mktemp("damaged"), {"deadline": "realtime", "cpu-used": "8"}
    paths = [write_clip(folder / f"{i}.webm", codec="libvpx-vp9", options=vp9, first=20 * i) for i in range(5)]
    damage_packet(paths[2], 12)
    return [VideoRecord(path.name, str(path), ("x",)) for path in paths]


# 20 samples of one frame each: chance decides whether a sample of the damaged file meets the damage.
SAMPLES = {"batch_size": 1, "num_frames": 1, "seed": 0, "num_steps": 20}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_that_knows_what_failed_inside_dali_goes_on_the_same(partly_damaged, tokenizer, num_workers):
    settings = {**SAMPLES, "decoder": "dali", "num_workers": num_workers}
    whole, bad_files = run(partly_damaged, tokenizer, **settings)
    assert list(bad_files) == [partly_damaged[2].video]
    assert bad_files[partly_damaged[2].video].startswith(GAVE_UP)
    start = 3  # the damage shows at step 2
    assert run(partly_damaged, tokenizer, **{**settings, "num_steps": start - 1})[1] == {}
    _, known_bad = run(partly_damaged, tokenizer, **{**settings, "num_steps": start})

    settings |= {"start_step": start, "num_steps": 20 - start}
    resumed, bad_files_after = run(partly_damaged, tokenizer, known_bad=known_bad, **settings)
    assert bad_files_after == bad_files
    for batch, reference in zip(resumed, whole[start:], strict=True):
        assert batch.sample_ids.tolist() == reference.sample_ids.tolist()
        np.testing.assert_array_equal(batch.video, reference.video)
    unaware, _ = run(partly_damaged, tokenizer, **settings)  # DALI's pictures until it fails again
    assert any(not torch.equal(batch.video, other.video) for batch, other in zip(unaware, whole[start:], strict=True))


def test_known_bad_files_leave_the_stream_of_pyav_as_it_is(partly_damaged, tokenizer):
    settings = {**SAMPLES, "decoder": "pyav", "num_workers": 0}
    whole, bad_files = run(partly_damaged, tokenizer, **settings)
    assert list(bad_files) == [partly_damaged[2].video]
    assert 2 in [batch.sample_ids.item() for batch in whole]  # where a sample misses the damage, the file is used
    known_bad = {**bad_files, "elsewhere.mp4": "zero bytes"}
    again, bad_files_after = run(partly_damaged, tokenizer, known_bad=known_bad, **settings)
    assert bad_files_after == known_bad
    for batch, reference in zip(again, whole, strict=True):
        assert batch.sample_ids.tolist() == reference.sample_ids.tolist()
        np.testing.assert_array_equal(batch.video, reference.video)


def test_known_bad_files_are_left_out_from_the_start_where_dali_decodes(partly_damaged, tokenizer):
    known_bad = {partly_damaged[1].video: "damaged (earlier)", partly_damaged[2].video: "damaged"}
    settings = {"decoder": "dali", "train": False, "num_workers": 0, "known_bad": known_bad}
    batches, bad_files = run(partly_damaged, tokenizer, **settings)
    assert [batch.sample_ids.tolist() for batch in batches] == [[0, 3, 4]]
    assert bad_files == known_bad


def test_evaluation_survives_a_set_that_is_mostly_bad(good, bad, tokenizer, tmp_path):
    """Thirty files that cannot be read and one that can: it is scored, they are named."""
    records = []
    for i in range(30):
        (tmp_path / f"{i:02}.mp4").touch()
        records.append(VideoRecord(f"{i:02}", str(tmp_path / f"{i:02}.mp4"), ("nothing",)))
    records.insert(17, good[3])
    settings = {"num_frames": 4, "max_text_length": 16, "image_size": None, "train": False, "num_workers": 0}
    with make_loader(records, tokenizer, batch_size=8, **settings) as loader:
        (batch,) = list(loader)
        assert batch.captions == ["clip 03"]
        assert len(loader.bad_files) == 30
