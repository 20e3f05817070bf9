"""Frames chosen by time: which one is on screen when, at constant and variable rates."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.sampling import SAMPLING_KINDS, FrameSampling
from fastvtp.data.video.decoding import Video
from fastvtp.data.video.frame_times import FrameTimes, frame_times
from fastvtp.errors import UserError
from tests.data.clips import write_clip
from tests.data.test_span_clips import H264, WEBM, shown

UNEVEN_MS = np.cumsum(np.random.default_rng(5).integers(8, 400, 90)) * 4  # 90 frames in about 70 s
UNEVEN_MS -= UNEVEN_MS[0]


def rng(seed=0):
    return np.random.default_rng(seed)


def even(total, rate=30):
    return frame_times(np.arange(total), Fraction(1, rate), Fraction(rate), range(total))


def uneven(seconds):
    ticks = np.round(np.asarray(seconds) * 90_000).astype(np.int64)
    times = frame_times(ticks - ticks[0], Fraction(1, 90_000), None, range(len(ticks)))
    assert times.rate is None
    return times


# --- At a constant rate


@pytest.mark.parametrize("kind", SAMPLING_KINDS)
@settings(deadline=None)  # a busy machine
@given(
    total=st.integers(1, 200),
    num_frames=st.integers(1, 20),
    stride=st.integers(1, 6),
    rate=st.sampled_from([Fraction(30), Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(8)]),
    seed=st.none() | st.integers(0, 100),
    segment=st.integers(0, 2),
)
def test_a_whole_part_of_the_rate_is_that_stride_draw_by_draw(kind, total, num_frames, stride, rate, seed, segment):
    times = frame_times(np.arange(total), 1 / rate, rate, range(total))
    by_time = FrameSampling(kind, num_frames, fps=float(rate) / stride)
    by_frame = FrameSampling(kind, num_frames, stride if kind == "strided" else 1)
    first, second = (None, None) if seed is None else (rng(seed), rng(seed))
    of_segments = (segment, 3) if seed is None else (0, 1)
    expected = by_frame.indices(total, first, *of_segments)
    np.testing.assert_array_equal(by_time.indices_in_time(times, second, *of_segments), expected)
    assert first is None or second is None or first.random() == second.random()


@settings(deadline=None)  # a busy machine
@given(total=st.integers(2, 300), fps=st.floats(0.5, 100), num_frames=st.integers(1, 16), seed=st.integers(0, 50))
def test_any_fps_of_a_constant_rate_keeps_its_distance_in_time(total, fps, num_frames, seed):
    indices = FrameSampling("strided", num_frames, fps=fps).indices_in_time(even(total), rng(seed))
    assert indices.dtype == np.int32
    assert 0 <= indices[0] <= indices[-1] < total
    if (num_frames - 1) / fps < total / 30:
        np.testing.assert_array_less(np.abs(indices - indices[0] - np.arange(num_frames) * 30 / fps), 1 + 1e-6)


def test_an_fps_beyond_the_rate_repeats_frames():
    indices = FrameSampling("strided", 6, fps=20).indices_in_time(even(30, rate=10), None)
    assert sorted(np.unique(indices, return_counts=True)[1].tolist()) == [2, 2, 2]


def test_the_middle_of_29_97_frames_a_second_at_10():
    times = frame_times(np.arange(100), Fraction(1001, 30000), Fraction(30000, 1001), range(100))
    start = (99 * 1.001 / 30 - 0.7) / 2  # the last moment as far from the last frame as the first from the first
    expected = [int((start + i / 10) * 30 / 1.001) for i in range(8)]
    assert FrameSampling("strided", 8, fps=10).indices_in_time(times, None).tolist() == expected


def test_times_that_are_rounded_to_milliseconds_are_known_to_be_even():
    ms = np.round(np.arange(400) * 1001 / 30).astype(np.int64)
    times = frame_times(ms, Fraction(1, 1000), Fraction(30000, 1001), range(100, 130))
    assert times.rate == pytest.approx(30 / 1.001)
    assert (times.count, times.duration) == (30, pytest.approx(30 * 1.001 / 30))
    jittered = ms + np.where(np.arange(400) == 7, 9, 0)
    assert frame_times(jittered, Fraction(1, 1000), Fraction(30000, 1001), range(400)).rate is None


# --- At a variable rate


def on_screen(seconds, moment):
    """The last frame whose time has come, by going through them."""
    return max([i for i, time in enumerate(seconds) if time <= moment + 1e-6], default=0)


SLIDES = [0.0, 0.04, 0.08, 5.0, 5.04, 5.08, 5.12, 9.0]  # pictures that stand still in between
LENGTH = 9.0 * 8 / 7


@pytest.mark.parametrize(
    ("kind", "num_frames", "places"),
    [
        ("uniform", 4, [0.5, 1.5, 2.5, 3.5]),
        ("random_sorted", 4, [0.5, 1.5, 2.5, 3.5]),
        ("starts", 4, [0, 1, 2, 3]),
        ("strided", 4, [0.5, 1.5, 2.5, 3.5]),  # shorter than the span
    ],
)
def test_parts_are_of_time_and_not_of_frames(kind, num_frames, places):
    moments = [place * LENGTH / num_frames for place in places]
    expected = [on_screen(SLIDES, moment) for moment in moments]
    sampling = FrameSampling(kind, num_frames, fps=0.1)
    assert sampling.indices_in_time(uneven(SLIDES), None).tolist() == expected
    assert expected != FrameSampling(kind, num_frames, 10).indices(8, None).tolist()


@pytest.mark.parametrize(("segments", "starts"), [(1, [3.25]), (3, [0.0, 3.25, 6.5])])
def test_segments_stand_at_even_distances_in_time(segments, starts):
    sampling = FrameSampling("strided", 6, fps=2)  # 2.5 s from the first to the last of 9 s
    for segment, start in enumerate(starts):
        expected = [on_screen(SLIDES, start + i / 2) for i in range(6)]
        assert sampling.indices_in_time(uneven(SLIDES), None, segment, segments).tolist() == expected


def test_a_random_start_is_anywhere_in_time():
    """Frames stand still for seconds: a start at a frame would never see them change."""
    seconds, fps, num_frames = np.array(SLIDES), 4.0, 6
    firsts = []
    for seed in range(400):
        indices = FrameSampling("strided", num_frames, fps=fps).indices_in_time(uneven(SLIDES), rng(seed))
        ends = np.append(seconds, LENGTH)[indices + 1]
        low = np.max(seconds[indices] - np.arange(num_frames) / fps)
        high = np.min(ends - np.arange(num_frames) / fps)
        assert low < high + 1e-5, "no moment to start from shows these frames"
        firsts.append(indices[0])
    # the first shows for 4.92 of the 9.04 s in which a clip may begin
    share = np.mean(np.array(firsts) == 2)
    assert share == pytest.approx(4.92 / (LENGTH - 1.25), abs=0.08)
    assert set(firsts) >= {2, 6}


@settings(deadline=None)  # a busy machine
@given(st.lists(st.floats(0.02, 3), min_size=1, max_size=40), st.sampled_from(SAMPLING_KINDS), st.integers(0, 30))
def test_any_times_give_frames_in_order(gaps, kind, seed):
    times = frame_times(np.cumsum([0, *np.round(np.array(gaps) * 1000).astype(int)]), Fraction(1, 1000), None,
                        range(len(gaps) + 1))  # fmt: skip
    for generator in (None, rng(seed)):
        indices = FrameSampling(kind, 7, fps=3.0).indices_in_time(times, generator)
        assert (np.diff(indices) >= 0).all()
        assert 0 <= indices[0] <= indices[-1] <= len(gaps)


def test_a_moment_half_a_tick_before_a_frame_counts_as_its_time():
    ticks = np.array([0, 33, 67, 400])  # milliseconds
    times = frame_times(ticks, Fraction(1, 1000), None, range(4))
    moments = np.array([-0.1, 0.0324, 0.0326, 0.0664, 0.0666, 0.3994, 0.3996, 9.0])
    assert times.on_screen(moments).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    coarse = frame_times(np.array([0, 1, 2, 9]), Fraction(1, 10), None, range(4))
    assert coarse.on_screen(np.array([0.0999, 0.1, 0.1999, 0.2])).tolist() == [0, 1, 1, 2]


def test_a_span_counts_from_its_first_frame_to_the_frame_after_it():
    ticks = np.array([0, 100, 300, 350, 900, 1000])
    inner = frame_times(ticks, Fraction(1, 1000), None, range(1, 4))
    assert inner.seconds.tolist() == pytest.approx([0, 0.2, 0.25])
    assert inner.duration == pytest.approx(0.8)
    last = frame_times(ticks, Fraction(1, 1000), None, range(4, 6))
    assert last.duration == pytest.approx(1.0 * 6 / 5 - 0.9)  # the last counts as long as the mean
    alone = frame_times(np.array([0]), Fraction(1, 1000), None, range(1))
    assert FrameSampling("strided", 3, fps=2.0).indices_in_time(alone, rng()).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("fps", "stride", "complaint"),
    [(0.0, 1, "fps must be positive"), (float("inf"), 1, "fps must be positive"), (5.0, 2, "fps 5 and stride 2 both")],
)
def test_what_is_no_spacing_is_refused(fps, stride, complaint):
    with pytest.raises(UserError, match=complaint):
        FrameSampling("strided", 4, stride, fps)


# --- Of files, through the loader


@pytest.fixture(scope="module")
def uneven_file(tmp_path_factory):
    """90 frames at a variable rate, 160 x 64."""
    folder = tmp_path_factory.mktemp("uneven")
    return str(write_clip(folder / "a.mp4", 90, height=64, width=160, pts=(UNEVEN_MS * 8).tolist(), **H264))


def test_the_file_is_not_even_and_says_its_times(uneven_file):
    with Video(uneven_file) as video:
        times = video.frame_times()
        assert isinstance(times, FrameTimes)
        assert times.rate is None
        np.testing.assert_allclose(times.seconds, UNEVEN_MS / 1000, atol=1e-9)
        assert times.duration == pytest.approx(video.duration)


@pytest.mark.parametrize("views", [(1, 1), (3, 1)])
def test_scores_of_a_variable_rate_show_what_is_on_screen(uneven_file, views):
    seconds = UNEVEN_MS / 1000
    record = VideoRecord("a", uneven_file, ("x",))
    settings = {"train": False, "sampling": "strided", "fps": 0.4, "num_frames": 7, "views": views}
    clips, bad = shown([record], **settings)
    assert bad == {}
    slack = seconds[-1] - 6 / 0.4
    starts = [slack / 2] if views == (1, 1) else [0, slack / 2, slack]
    assert [numbers for _, numbers in clips] == [
        [on_screen(seconds, start + i / 0.4) for i in range(7)] for start in starts
    ]


def test_training_on_a_variable_rate_stands_fps_apart_within_a_span(uneven_file):
    seconds = UNEVEN_MS / 1000
    record = VideoRecord("a", uneven_file, ("x",), start=20.0, end=50.0)
    inside = [i for i, time in enumerate(seconds) if 20 <= time < 50]
    clips, _ = shown([record], train=True, num_steps=10, sampling="strided", fps=0.5, num_frames=5)
    assert len({tuple(numbers) for _, numbers in clips}) > 20
    for _, numbers in clips:
        assert set(numbers) <= set(inside)
        ends = [seconds[n + 1] for n in numbers]
        low = max(seconds[n] - i / 0.5 for i, n in enumerate(numbers))
        assert low <= min(end - i / 0.5 for i, end in enumerate(ends)) + 1e-3


@pytest.mark.parametrize(("suffix", "decoder", "encoding"), [
    ("mp4", "pyav", H264), ("mkv", "pyav", H264), ("webm", "dali", WEBM)
])  # fmt: skip
@pytest.mark.parametrize("train", [True, False])
def test_a_constant_rate_gives_the_very_clips_of_the_stride(tmp_path, suffix, decoder, encoding, train):
    path = write_clip(tmp_path / f"a.{suffix}", 60, fps=30, **encoding)
    records = [VideoRecord(str(i), str(path), ("x",), start=start) for i, start in enumerate((None, 0.5))]
    common = {"train": train, "sampling": "strided", "decoder": decoder, "seed": 8, "num_frames": 6}
    common |= {"num_steps": 5} if train else {"views": (3, 1)}
    clips, bad = shown(records, frame_stride=5, **common)
    assert bad == {}
    assert shown(records, fps=6.0, **common) == (clips, bad)
    assert shown(records, fps=7.0, **common)[0] != clips
