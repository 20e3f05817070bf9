import numpy as np
import pytest
import torch
from PIL import Image

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.sampling import CropSampling, FrameSampling
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from tests.data.clips import (
    damage_packet,
    decode_sequentially,
    write_clip,
)
from tests.data.loaders import make_loader

NUM_CLIPS = 5
VIEWS = (3, 2)
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Clips of 16 frames, 64 x 96: a window of 64 x 64 moves sideways and is not rescaled."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [write_clip(folder / f"{i}.mp4", first=16 * i) for i in range(NUM_CLIPS)]
    return [VideoRecord(path.stem, str(path), (f"clip {path.stem}",)) for path in paths]


@pytest.fixture(scope="module")
def tokenizer(records):
    return CaptionTokenizer.train([record.captions[0] for record in records], 100)


def evaluate(records, tokenizer, **settings):
    defaults = {"batch_size": 4, "num_frames": 4, "image_size": 64, "views": VIEWS, "num_workers": 0}
    text = {"max_text_length": 16, "train": False, "sampling": "strided", "frame_stride": 2}
    with make_loader(records, tokenizer, **{**defaults, **text, **settings}) as loader:
        return list(loader), loader.bad_files


def joined(batches):
    return torch.cat([batch.sample_ids for batch in batches]).tolist(), torch.cat([batch.video for batch in batches])


def test_strided_segments_start_at_even_distances_over_the_slack():
    sampling = FrameSampling("strided", num_frames=4, stride=2)  # spans 7 frames
    starts = [int(sampling.indices(20, None, j, 3)[0]) for j in range(3)]
    assert starts == [0, 6, 13]
    assert sampling.indices(20, None, 1, 3).tolist() == [6, 8, 10, 12]
    assert [int(sampling.indices(20, None, j, 2)[0]) for j in range(2)] == [0, 13]
    assert sampling.indices(20, None, 0, 1).tolist() == [6, 8, 10, 12]  # the centre
    assert [sampling.indices(5, None, j, 3).tolist() for j in range(3)] == [[0, 1, 3, 4]] * 3


@pytest.mark.parametrize("kind", ["uniform", "random_sorted"])
def test_segments_of_other_kinds_take_even_places_in_every_part(kind):
    sampling = FrameSampling(kind, num_frames=3)
    every = [sampling.indices(24, None, j, 2).tolist() for j in range(2)]
    assert every == [[2, 10, 18], [6, 14, 22]]
    assert sampling.indices(24, None).tolist() == [4, 12, 20]


def test_crops_slide_along_the_side_that_leaves_room():
    def corners(crops, height, width, aspect=1.0):
        windows = [CropSampling(aspect).window(height, width, None, crop, crops) for crop in range(crops)]
        assert not any(window.flip for window in windows)
        return [(window.y0, window.x0, window.y1, window.x1) for window in windows]

    assert corners(3, 100, 200) == [(0, 0, 1, 0.5), (0, 0.25, 1, 0.75), (0, 0.5, 1, 1)]
    assert corners(3, 200, 100) == [(0, 0, 0.5, 1), (0.25, 0, 0.75, 1), (0.5, 0, 1, 1)]
    assert corners(2, 100, 200) == [(0, 0, 1, 0.5), (0, 0.5, 1, 1)]
    assert corners(1, 100, 200) == [(0, 0.25, 1, 0.75)]
    assert corners(3, 100, 100, aspect=2.0) == [(0, 0, 0.5, 1), (0.25, 0, 0.75, 1), (0.5, 0, 1, 1)]
    assert corners(3, 100, 100) == [(0, 0, 1, 1)] * 3


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_squashed_frames_are_resized_as_a_whole(tokenizer, tmp_path, decoder):
    path = write_clip(tmp_path / "clip.webm", **VP9)
    record = VideoRecord("clip", str(path), ("clip",))
    settings = {"views": (1, 1), "batch_size": 1, "decoder": decoder}
    cropped, squashed = (
        evaluate([record], tokenizer, framing=framing, **settings)[0][0].video[0].numpy()
        for framing in ("crop", "squash")
    )
    frames = decode_sequentially(str(path))[FrameSampling("strided", 4, 2).indices(16, None)]
    expected = np.stack([np.asarray(Image.fromarray(frame).resize((64, 64))) for frame in frames]).astype(float)
    assert np.abs(squashed - expected).mean() < 4
    assert np.abs(cropped - expected).mean() > 10


@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_record_comes_in_all_its_views_in_a_row(records, tokenizer, num_workers):
    ids, video = joined(evaluate(records, tokenizer, num_workers=num_workers)[0])
    assert ids == [record for record in range(NUM_CLIPS) for _ in range(6)]
    sampling = FrameSampling("strided", 4, 2)
    for number, clip in enumerate(video.numpy()):
        record, view = divmod(number, 6)
        segment, crop = divmod(view, 2)
        left = (0, 32)[crop]
        frames = decode_sequentially(records[record].video)[sampling.indices(16, None, segment, 3)]
        np.testing.assert_array_equal(clip, frames[:, :, left : left + 64])


def test_one_view_is_what_evaluation_shows_without_views(records, tokenizer):
    plain, _ = evaluate(records, tokenizer, views=(1, 1))
    ids, video = joined(evaluate(records, tokenizer, views=(1, 3))[0])
    assert joined(plain)[0] == list(range(NUM_CLIPS))
    assert ids[1::3] == list(range(NUM_CLIPS))
    torch.testing.assert_close(video[1::3], joined(plain)[1], rtol=0, atol=0)  # the middle crop of three


def test_views_may_lie_on_different_ranks_and_none_is_lost(records, tokenizer):
    whole = joined(evaluate(records, tokenizer, batch_size=8)[0])
    ranks = [evaluate(records, tokenizer, batch_size=4, rank=rank, world_size=2)[0] for rank in range(2)]
    assert [len(batches) for batches in ranks] == [4, 4]
    parts = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert joined(parts)[0] == whole[0]
    torch.testing.assert_close(joined(parts)[1], whole[1], rtol=0, atol=0)


def test_an_evaluation_that_starts_later_makes_the_remaining_steps(records, tokenizer):
    whole, _ = evaluate(records, tokenizer)
    rest, _ = evaluate(records, tokenizer, start_step=5)
    assert [batch.step for batch in rest] == [5, 6, 7]
    torch.testing.assert_close(joined(rest)[1], joined(whole[5:])[1], rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_clip_damaged_in_one_segment_is_left_out_in_all_views(records, tokenizer, tmp_path, num_workers):
    path = write_clip(tmp_path / "damaged.webm", **VP9)
    damage_packet(path, 12)
    damaged = VideoRecord("damaged", str(path), ("clip",))
    settings = {"sampling": "strided", "frame_stride": 1, "views": (2, 1), "batch_size": 3, "num_workers": num_workers}
    batches, bad_files = evaluate([records[0], damaged, records[1]], tokenizer, decoder="pyav", **settings)
    assert list(bad_files) == [str(path)]
    assert joined(batches)[0] == [0, 0, 2, 2]
    settings |= {"views": (1, 1), "batch_size": 1}
    assert evaluate([damaged], tokenizer, decoder="pyav", **settings)[1] == {}  # the frames in the middle are sound


def test_dali_decodes_the_same_views(tokenizer, tmp_path):
    records = [
        VideoRecord(str(i), str(write_clip(tmp_path / f"{i}.webm", first=16 * i, **VP9)), ("clip",)) for i in range(2)
    ]
    by_pyav, by_dali = (joined(evaluate(records, tokenizer, decoder=decoder)[0]) for decoder in ("pyav", "dali"))
    assert by_pyav[0] == by_dali[0]
    difference = (by_pyav[1].float() - by_dali[1].float()).abs().mean((1, 2, 3, 4))
    assert (difference < 2.5).all()  # chroma alone; another segment or window gives 10 and more


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"views": (0, 1)}, r"views: expected positive \(segments, crops\), got \(0, 1\)"),
        ({"train": True}, r"views \(3, 2\) are for evaluation"),
        ({"image_size": None}, "views: 2 crops need an image_size"),
        ({"framing": "squash"}, "framing 'squash' shows whole frames: expected one crop, got 2"),
        ({"framing": "squash", "image_size": None, "views": (1, 1)}, "framing 'squash' needs an image_size"),
    ],
)
def test_bad_views_are_refused_at_once(records, tokenizer, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        evaluate(records, tokenizer, **settings)
