"""With decoder="dali": what DALI cannot decode comes from PyAV, in the same batches, and no file ends the run."""

import logging

import av
import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.wordpiece import CaptionTokenizer
from tests.data.clips import damage_packet, frame_numbers, write_clip
from tests.data.loaders import make_loader

VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}}
SPACING, NUM_FRAMES = 20, 16


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer.train(["x"], 50)


def record(path):
    return VideoRecord(path.name, str(path), ("x",))


def changing_size(path, first):
    """One webm whose second half is larger, as where two recordings were joined."""
    with av.open(str(path), "w") as container:
        stream = None
        for height, width, begin in ((64, 96, 0), (96, 128, NUM_FRAMES // 2)):
            part = write_clip(path.with_name("part.webm"), NUM_FRAMES // 2, height, width, first=first + begin, **VP9)
            with av.open(str(part)) as source:
                stream = stream or container.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts = packet.dts = packet.pts + begin * 125
                        packet.stream = stream
                        container.mux(packet)
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two that DALI decodes; then H.264, and MPEG-1 in a container that DALI does not read; one that breaks inside."""
    folder = tmp_path_factory.mktemp("beside")
    paths = [write_clip(folder / f"{i}.webm", NUM_FRAMES, first=SPACING * i, **VP9) for i in range(2)]
    paths.append(write_clip(folder / "2.mp4", NUM_FRAMES, first=SPACING * 2))
    paths.append(write_clip(folder / "3.mpg", NUM_FRAMES, first=SPACING * 3, codec="mpeg1video", fps=25))
    paths.append(write_clip(folder / "4.webm", NUM_FRAMES, first=SPACING * 4, **VP9))
    damage_packet(paths[4], 12)
    return [record(path) for path in paths]


def run(records, tokenizer, **settings):
    defaults = {"num_frames": 2, "max_text_length": 8, "image_size": 64, "decoder": "dali", "num_workers": 0}
    with make_loader(records, tokenizer, **{**defaults, "train": False, **settings}) as loader:
        return list(loader), loader.bad_files


def who(batch):
    """By the frames themselves: which clip each row shows."""
    return [frame_numbers(clip)[0] // SPACING for clip in batch.video.numpy()]


@pytest.mark.parametrize("chosen", [[0, 1], [2, 3], [0, 2, 1, 3], [2, 0]], ids=str)
def test_clips_of_both_decoders_meet_in_one_batch(records, tokenizer, chosen):
    chosen = [records[i] for i in chosen]
    settings = {"batch_size": len(chosen), "image_size": None}
    (batch,), bad = run(chosen, tokenizer, **settings)
    (other,), _ = run(chosen, tokenizer, **settings, decoder="pyav")
    assert bad == {}
    assert who(batch) == [records.index(one) for one in chosen]
    for clip, by_pyav, one in zip(batch.video.int(), other.video.int(), chosen, strict=True):
        assert frame_numbers(clip.numpy()) == frame_numbers(by_pyav.numpy())
        if one.id in ("2.mp4", "3.mpg"):
            assert torch.equal(clip, by_pyav)


def test_each_kind_that_pyav_takes_over_is_said_once(records, tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="fastvtp.data.notes"):
        run(records[:4], tokenizer, batch_size=2, train=True, num_steps=8)
    said = [line.getMessage() for line in caplog.records]
    assert len(said) == 2
    assert any("h264 (yuv420p)" in line for line in said)
    assert any("mpeg1video (yuv420p)" in line for line in said)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_at_which_dali_fails_is_decoded_by_pyav_from_then_on(records, tokenizer, num_workers):
    """Frames behind the damage are replaced, those before it shown; workers live on."""
    settings = {"num_frames": 1, "batch_size": 2, "train": True, "num_steps": 12, "seed": 5, "image_size": None}
    chosen = [records[i] for i in (0, 1, 4)]
    defaults = {"max_text_length": 8, "decoder": "dali", "num_workers": num_workers}
    with make_loader(chosen, tokenizer, **defaults, **settings) as loader:
        batches, pids = [], set()
        for batch in loader:
            batches.append(batch)
            pids |= {*loader.worker_pids}
        (reason,) = loader.bad_files.values()
    assert len(pids) == num_workers
    assert reason.startswith(GAVE_UP)
    assert "Failed to send packet" in reason
    assert reason.count("; damaged") == 1  # what PyAV cannot decode of it is said, once
    places = [[0, 1, 4][index] for batch in batches for index in batch.sample_ids.tolist()]
    assert [clip for batch in batches for clip in who(batch)] == places
    used = [frame_numbers(clip)[0] - 4 * SPACING for batch in batches for clip in batch.video.numpy()]
    assert {frame for frame in used if frame >= 0} <= set(range(12))
    assert len({frame for frame in used if frame >= 0}) > 1
    if num_workers:
        others, bad = run(chosen, tokenizer, **settings)
        assert list(bad.values()) == [reason]
        for batch, other in zip(batches, others, strict=True):
            np.testing.assert_array_equal(batch.video, other.video)


def test_a_change_of_size_inside_a_clip_does_not_end_the_run(records, tokenizer, tmp_path):
    odd = record(changing_size(tmp_path / "odd.webm", 4 * SPACING))
    batches, bad = run([*records[:2], odd], tokenizer, batch_size=3, num_frames=4)
    assert {index for batch in batches for index in batch.sample_ids.tolist()} >= {0, 1}
    assert all(not reason.startswith(GAVE_UP) for reason in bad.values())
    assert len(batches) == 1


def test_an_error_that_no_file_explains_is_raised(records, tokenizer, monkeypatch):
    monkeypatch.setattr("fastvtp.data.loader.why_not_alone", lambda *given: None)
    with pytest.raises(RuntimeError, match="Failed to send packet"):
        run([records[4]], tokenizer, batch_size=1, num_frames=8)


def test_ivf_without_a_count_of_frames(records, tokenizer, tmp_path):
    path = write_clip(tmp_path / "a.ivf", NUM_FRAMES, first=2 * SPACING, **VP9)
    content = bytearray(path.read_bytes())
    content[24:28] = bytes(4)
    path.write_bytes(content)
    (batch,), bad = run([*records[:2], record(path)], tokenizer, batch_size=3, image_size=None)
    assert (who(batch), bad) == ([0, 1, 2], {})
