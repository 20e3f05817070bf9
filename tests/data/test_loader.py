import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.sampling import FrameSampling, epoch_order
from fastvtp.data.video.decoding import decode_frames
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from tests.data.clips import (
    damage_packet,
    decode_sequentially,
    decode_upright,
    frame_numbers,
    write_clip,
)
from tests.data.loaders import make_loader

NUM_CLIPS = 11
FIRST_NUMBER = 16  # clip i carries the numbers from FIRST_NUMBER * i on


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [
        VideoRecord(str(i), str(write_clip(folder / f"{i}.mp4", first=FIRST_NUMBER * i)), (f"clip {i} moves",))
        for i in range(NUM_CLIPS)
    ]


@pytest.fixture(scope="module")
def tokenizer(records):
    return CaptionTokenizer.train([caption for record in records for caption in record.captions], 100)


@pytest.fixture
def load(records, tokenizer):
    """Loaders over the clips, in this process unless asked otherwise; closed at the end of the test."""
    loaders = []

    def make(records=records, **settings):
        defaults = {"batch_size": 4, "num_frames": 4, "image_size": 32, "max_text_length": 16, "train": True, "seed": 3}
        if settings.get("train", True):
            defaults["num_steps"] = 4
        loaders.append(make_loader(records, tokenizer, **{**defaults, "num_workers": 0, **settings}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def clips_of(video):
    """Which clip each row of a batch at native size shows."""
    return [frame_numbers(clip)[0] // FIRST_NUMBER for clip in video.numpy()]


def assert_same(batches, others):
    assert [batch.step for batch in batches] == [batch.step for batch in others]
    for batch, other in zip(batches, others, strict=True):
        assert batch.captions == other.captions
        for name in ("video", "input_ids", "cu_seqlens", "sample_ids"):
            torch.testing.assert_close(getattr(batch, name), getattr(other, name), rtol=0, atol=0, msg=name)


def test_a_batch_holds_what_its_docstring_says(load, tokenizer):
    batch = next(iter(load(num_frames=6, image_size=(24, 40))))
    assert batch.video.shape == (4, 6, 24, 40, 3)
    assert batch.video.dtype == torch.uint8
    assert batch.video.is_contiguous()
    assert batch.step == 0
    assert batch.sample_ids.dtype == torch.int64
    assert batch.captions == [f"clip {index} moves" for index in batch.sample_ids.tolist()]
    assert batch.input_ids.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    ids = tokenizer.encode(batch.captions, 16)
    assert batch.text_lengths == tuple(len(caption) for caption in ids)
    assert batch.max_text_length == max(batch.text_lengths)
    for row, (start, end) in enumerate(zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)):
        np.testing.assert_array_equal(batch.input_ids[start:end], ids[row])
    moved = batch.to("meta")
    assert {moved.video.device.type, moved.input_ids.device.type, moved.sample_ids.device.type} == {"meta"}
    assert moved.captions == batch.captions


def test_content_is_the_same_for_any_number_of_workers(load):
    reference = list(load())
    assert_same(reference, list(load(num_workers=1)))
    assert_same(reference, list(load(num_workers=2, prefetch=1)))


def test_seeds_and_epochs_change_what_is_drawn(load):
    first, second = ([batch.video for batch in load(seed=seed, num_steps=3, batch_size=11)] for seed in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0].sort(0).values, first[1].sort(0).values)


def test_the_stream_runs_across_epochs_and_drops_nothing(load):
    batches = list(load(num_steps=11, seed=5))  # 44 samples: 4 epochs of 11, no batch ends with an epoch
    indices = torch.cat([batch.sample_ids for batch in batches]).tolist()
    for epoch in range(4):
        assert indices[11 * epoch : 11 * (epoch + 1)] == epoch_order(5, epoch, 11).tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_continues_the_same_stream(load, num_workers):
    whole = list(load(num_steps=5))
    assert_same(whole[3:], list(load(start_step=3, num_steps=2, num_workers=num_workers)))


def test_ranks_share_the_global_batch(load):
    whole = list(load(batch_size=4))
    ranks = [list(load(batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        torch.testing.assert_close(batch.video, torch.cat([part.video for part in parts]), rtol=0, atol=0)
        assert batch.captions == [caption for part in parts for caption in part.captions]


def test_an_endless_stream_has_no_length_and_goes_on_after_a_break(load):
    loader = load(num_steps=None)
    with pytest.raises(TypeError, match="endless"):
        len(loader)
    steps = [next(iter(loader)).step for _ in range(3)]
    assert steps == [0, 1, 2]
    finite = load(num_steps=2)
    assert len(finite) == len(list(finite)) == 2
    assert list(finite) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_shows_every_record_once_in_order_and_starts_over(load, num_workers):
    loader = load(train=False, num_workers=num_workers, image_size=None)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.captions) for batch in batches] == [4, 4, 3]
        assert torch.cat([batch.sample_ids for batch in batches]).tolist() == list(range(11))
        assert [clip for batch in batches for clip in clips_of(batch.video)] == list(range(11))
        assert [batch.cu_seqlens[-1].item() for batch in batches] == [len(batch.input_ids) for batch in batches]
    for batch in loader:
        assert batch.step == 0
        break
    assert [batch.step for batch in loader] == [0, 1, 2]


def test_evaluation_over_ranks_covers_every_record_once(load):
    ranks = [list(load(train=False, batch_size=2, rank=rank, world_size=3)) for rank in range(3)]
    shown = [index for batches in ranks for batch in batches for index in batch.sample_ids.tolist()]
    assert sorted(shown) == list(range(11))
    assert [len(batches) for batches in ranks] == [2, 2, 2]
    assert load(train=False, batch_size=2, world_size=3).__len__() == 2


def test_evaluation_is_fixed_and_centred(load, records):
    centre = next(iter(load(train=False, image_size=64, batch_size=1, seed=0)))
    other_seed = next(iter(load(train=False, image_size=64, batch_size=1, seed=9)))
    torch.testing.assert_close(centre.video, other_seed.video, rtol=0, atol=0)
    indices = FrameSampling("uniform", 4).indices(16, None)
    expected = decode_sequentially(records[0].video)[indices][:, :, 16:80]  # the central 64 of 96 columns, not rescaled
    np.testing.assert_array_equal(centre.video[0], expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_native_size_is_the_decoded_picture_itself(load, records, num_workers):
    for batch in load(image_size=None, num_workers=num_workers, sampling="strided", frame_stride=3):
        for index, clip in zip(batch.sample_ids.tolist(), batch.video.numpy(), strict=True):
            numbers = np.array(frame_numbers(clip)) - FIRST_NUMBER * index
            assert (np.diff(numbers) == 3).all()
            np.testing.assert_array_equal(clip, decode_frames(records[index].video, numbers))


def test_native_size_refuses_a_batch_of_several_sizes(load, tmp_path, records):
    odd = VideoRecord("odd", str(write_clip(tmp_path / "odd.mp4", height=48)), ("odd",))
    with pytest.raises(UserError, match=r"image_size=None needs videos of one size, step 0 holds"):
        list(load([*records[:3], odd], image_size=None))


def test_frames_of_a_clip_share_one_window_and_clips_do_not(load, tmp_path, records):
    still = np.repeat(decode_sequentially(records[0].video)[:1], 16, axis=0)
    path = write_clip(tmp_path / "still.mp4", frames=still, options={"crf": "0", "bf": "0"})
    record = VideoRecord("still", str(path), ("x",))
    batch = next(iter(load([record] * 4, crop_scale=(0.3, 0.6))))
    frames = batch.video.float()
    assert (frames - frames[:, :1]).abs().max() <= 1  # the encoder alone may tell repeated frames apart
    assert all((frames[i] - frames[j]).abs().mean() > 1 for i in range(4) for j in range(i))


def mirrored(load, caption, **settings):
    """For clips red on the left and blue on the right: which were mirrored."""
    records = [VideoRecord(r.id, r.video, caption) for r in load()._records]
    batches = list(load(records, crop_scale=(1.0, 1.0), num_steps=8, **settings))
    below = torch.cat([batch.video[:, 0, 12:] for batch in batches]).float()
    return (below[:, :, :8, 2] > below[:, :, :8, 0]).float().mean((1, 2)) > 0.5


def test_half_the_clips_are_mirrored_unless_a_caption_names_a_direction(load):
    assert 8 < mirrored(load, ("a ball moves",)).sum() < 24
    assert not mirrored(load, ("a ball moves", "it rolls to the left")).any()
    assert not mirrored(load, ("a ball moves",), flip=False).any()
    assert not mirrored(load, ("a ball moves",), train=False).any()


def test_training_draws_among_captions_and_evaluation_takes_the_first(load, records):
    several = [VideoRecord(r.id, r.video, ("one", "two", "three")) for r in records]
    drawn = [caption for batch in load(several, num_steps=8) for caption in batch.captions]
    assert set(drawn) == {"one", "two", "three"}
    assert {caption for batch in load(several, train=False) for caption in batch.captions} == {"one"}


@pytest.mark.parametrize("settings", [{"image_size": 32}, {"image_size": None}])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_share_dalis_memory_and_stay_valid(load, settings, num_workers):
    loader = load(num_steps=12, num_workers=num_workers, **settings)
    batches, copies = [], []
    for batch in loader:
        batches.append(batch)
        copies.append(batch.video.clone())
    loader.close()
    assert len({batch.video.data_ptr() for batch in batches}) == len(batches)
    for batch, copy in zip(batches, copies, strict=True):
        torch.testing.assert_close(batch.video, copy, rtol=0, atol=0)


def test_without_a_tokenizer_captions_have_no_ids(records, load):
    settings = {"batch_size": 4, "num_frames": 4, "image_size": 32, "train": True, "seed": 3, "num_steps": 1}
    with make_loader(records, None, num_workers=0, **settings) as loader:
        (batch,) = list(loader)
    read = next(iter(load(num_steps=1)))
    assert (batch.input_ids.shape, batch.input_ids.dtype) == ((0,), torch.int64)
    assert (batch.text_lengths, batch.max_text_length) == ((0, 0, 0, 0), 0)
    assert batch.cu_seqlens.tolist() == [0] * 5
    assert batch.captions == read.captions
    assert torch.equal(batch.video, read.video)


def test_video_is_not_copied_out_of_dali(load):
    loader = load()
    meta, video = loader._run()
    assert loader._assemble(meta, video).video.data_ptr() == video.as_tensor().data_ptr()


def test_closing_ends_the_workers(load):
    with load(num_workers=2) as loader:
        next(iter(loader))
        pids = loader.worker_pids
        assert len(set(pids)) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert loader.worker_pids == ()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_waiting_time_is_counted(load):
    loader = load(num_steps=2)
    batches = iter(loader)
    next(batches)
    first = loader.wait_seconds
    next(batches)
    assert 0 < first < loader.wait_seconds < 30


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"records": []}, "records: no videos"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is outside"),
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch": 0}, "prefetch"),
        ({"decoder_threads": 0}, "decoder_threads"),
        ({"start_step": -1}, "start_step -1"),
        ({"sampling": "strode"}, "got 'strode'"),
        ({"decoder": "nvdec"}, "got 'nvdec'"),
        ({"crop_scale": (0.9, 0.2)}, "crop_scale must be two shares"),
        ({"max_text_length": 2}, "max_text_length must be at least 3, got 2"),
        ({"max_text_length": None}, "max_text_length must be at least 3, got None"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_bad_settings_are_refused_at_once(load, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        load(**settings)


DALI_CLIPS = {
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mjpeg_turned.mp4": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "height": 96, "width": 64, "rotation": 90},
    "vp9_portrait.mp4": {"codec": "libvpx-vp9", "height": 96, "width": 64, "rotation": 270},
}


@pytest.fixture(scope="module")
def dali_records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dali")
    paths = [write_clip(folder / name, first=20 * i, **how) for i, (name, how) in enumerate(DALI_CLIPS.items())]
    return [VideoRecord(path.name, str(path), ("x",)) for path in paths]


# libswscale's settings that do what DALI's own conversion does; PyAV's default repeats chroma instead
LIKE_DALI = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@pytest.mark.parametrize("num_workers", [0, 1])
def test_dali_decodes_the_frames_that_pyav_decodes(load, dali_records, num_workers):
    settings = {"records": dali_records, "image_size": None, "num_steps": 3}
    by_pyav = list(load(decoder="pyav", **settings))
    by_dali = list(load(decoder="dali", num_workers=num_workers, **settings))
    for pyav, dali in zip(by_pyav, by_dali, strict=True):
        assert pyav.sample_ids.tolist() == dali.sample_ids.tolist()
        for index, clip, other in zip(dali.sample_ids.tolist(), dali.video.numpy(), pyav.video.numpy(), strict=True):
            pictures = decode_upright(dali_records[index].video, interpolation=LIKE_DALI)
            default = decode_upright(dali_records[index].video)
            used = [next(t for t, p in enumerate(default) if np.array_equal(p, frame)) for frame in other]
            np.testing.assert_array_equal(clip, pictures[used])


def test_dali_and_pyav_clips_go_through_the_same_window_and_flip(load, dali_records):
    settings = {"records": dali_records, "num_steps": 4, "crop_scale": (0.3, 0.7)}
    for pyav, dali in zip(load(decoder="pyav", **settings), load(decoder="dali", **settings), strict=True):
        difference = (pyav.video.float() - dali.video.float()).abs().mean((1, 2, 3, 4))
        # chroma, and windows that begin on whole pixels; another window or a flip gives 20 and more
        assert (difference < 6).all()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_that_only_dali_meets_does_not_end_the_run(load, tmp_path, num_workers):
    how = DALI_CLIPS["vp9.webm"]
    paths = [write_clip(tmp_path / f"{i}.webm", first=20 * i, **how) for i in range(5)]
    damage_packet(paths[2], 6)
    records = [VideoRecord(path.name, str(path), ("x",)) for path in paths]
    loader = load(records, decoder="dali", image_size=None, num_workers=num_workers)
    batches = list(loader)
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    assert list(loader.bad_files) == [str(paths[2])]
    assert loader.bad_files[str(paths[2])].startswith(GAVE_UP)
    for batch in batches:
        assert [frame_numbers(clip)[0] // 20 for clip in batch.video.numpy()] == batch.sample_ids.tolist()
    passes = load(records, decoder="dali", train=False, batch_size=2, num_workers=num_workers)
    for _ in range(2):
        assert torch.cat([batch.sample_ids for batch in passes]).tolist() == [0, 1, 3, 4]


def test_a_batch_may_hold_a_record_several_times(load):
    batch = next(iter(load(batch_size=15)))
    ids = batch.sample_ids.tolist()
    assert len(set(ids)) == NUM_CLIPS < len(ids)
    first, again = ids.index(ids[-1]), len(ids) - 1
    assert not torch.equal(batch.video[first], batch.video[again])


SCRIPT = """
import sys
from fastvtp.data.annotations import VideoRecord
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.reading import ClipShape
from fastvtp.data.stream import Batches
from fastvtp.data.wordpiece import CaptionTokenizer
print("start")
records = [VideoRecord("a", sys.argv[1], ("a clip",))]
batches = Batches(batch_size=2, train=True, num_steps=2)
loader = VideoTextLoader(records, None, shape=ClipShape(2, 32), batches=batches, decoding=Decoding(num_workers=2))
for batch in loader:
    print(batch.step)
"""


def test_a_script_needs_no_main_guard(records, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), records[0].video]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (result.returncode, result.stdout.split()) == (0, ["start", "0", "1"]), result.stderr


def test_what_the_workers_import_is_light():
    code = "import sys, fastvtp.data.source; print({'torch', 'av', 'nvidia', 'tokenizers'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "set()"
