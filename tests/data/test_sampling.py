import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvtp.data.sampling import (
    CropSampling,
    CropWindow,
    FrameSampling,
    epoch_order,
    sample_number,
    sample_rng,
)
from fastvtp.errors import UserError

KINDS = ("strided", "uniform", "random_sorted", "head_tail", "starts")


def rng(seed=0):
    return np.random.default_rng(seed)


@given(
    kind=st.sampled_from(KINDS),
    num_frames=st.integers(1, 40),
    stride=st.integers(1, 6),
    total=st.integers(1, 200),
    seed=st.none() | st.integers(0, 1000),
)
def test_indices_ascend_within_the_video_and_repeat_no_more_than_they_must(kind, num_frames, stride, total, seed):
    generator = None if seed is None else rng(seed)
    indices = FrameSampling(kind, num_frames, stride).indices(total, generator)
    assert indices.dtype == np.int32
    assert indices.shape == (num_frames,)
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0
    assert indices[-1] < total
    if kind != "uniform" or seed is None:  # a random frame per part can meet that of the next part
        counts = np.bincount(indices, minlength=total)
        assert counts.max() == math.ceil(num_frames / total)
        assert counts.min() >= num_frames // total


def test_strided_keeps_its_stride_and_reaches_every_start():
    sampling = FrameSampling("strided", num_frames=4, stride=3)
    starts = set()
    for seed in range(100):
        indices = sampling.indices(14, rng(seed))
        assert (np.diff(indices) == 3).all()
        starts.add(int(indices[0]))
    assert starts == {0, 1, 2, 3, 4}
    assert sampling.indices(14, None).tolist() == [2, 5, 8, 11]


def test_strided_covers_a_video_shorter_than_its_span():
    assert FrameSampling("strided", 4, 8).indices(16, rng()).tolist() == [2, 6, 10, 14]
    assert FrameSampling("strided", 6, 8).indices(3, rng()).tolist() == [0, 0, 1, 1, 2, 2]


def test_uniform_takes_one_frame_of_each_part():
    sampling = FrameSampling("uniform", 4)
    drawn = np.stack([sampling.indices(20, rng(seed)) for seed in range(200)])
    assert (drawn // 5 == np.arange(4)).all()
    assert [len(set(column)) for column in drawn.T] == [5, 5, 5, 5]
    assert sampling.indices(20, None).tolist() == [2, 7, 12, 17]


def test_random_sorted_draws_without_repetition_and_is_centred_without_a_generator():
    drawn = [FrameSampling("random_sorted", 5).indices(8, rng(seed)).tolist() for seed in range(50)]
    assert all(len(set(indices)) == 5 for indices in drawn)
    assert len(set(map(tuple, drawn))) > 20
    assert FrameSampling("random_sorted", 4).indices(20, None).tolist() == [2, 7, 12, 17]


def test_head_tail_draws_half_of_the_frames_from_each_half():
    drawn = np.stack([FrameSampling("head_tail", 4).indices(9, rng(seed)) for seed in range(200)])
    assert set(drawn[:, :2].flat) == {0, 1, 2, 3}
    assert set(drawn[:, 2:].flat) == {4, 5, 6, 7, 8}
    assert FrameSampling("head_tail", 4).indices(3, rng()).tolist() in ([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2])


@given(total=st.integers(1, 3000), num_frames=st.integers(1, 64), seed=st.none() | st.integers(0, 9))
def test_starts_are_those_of_numpys_linspace_and_whole_steps_those_of_its_integer_arange(total, num_frames, seed):
    """As the demos of VideoPrism's release and the evaluation of ALPRO's choose them."""
    generator = None if seed is None else rng(seed)
    starts = np.linspace(0, total, num_frames, endpoint=False, dtype=np.int32)
    np.testing.assert_array_equal(FrameSampling("starts", num_frames).indices(total, generator), starts)
    truncated = np.arange(0, total, total / num_frames, dtype=int)[:num_frames]
    np.testing.assert_array_equal(FrameSampling("whole_steps", num_frames).indices(total, generator), truncated)


def test_whole_steps_leave_the_end_out():
    assert FrameSampling("whole_steps", 4).indices(10, None).tolist() == [0, 2, 4, 6]
    assert FrameSampling("starts", 4).indices(10, None).tolist() == [0, 2, 5, 7]
    assert FrameSampling("whole_steps", 4).indices(3, None).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("total", [16, 33, 59, 250])
def test_two_segments_of_starts_are_starts_and_middles(total):
    """VideoMAE's test clips of Something-Something V2: all of these frames in order, every second one."""
    part = total / 16
    released = sorted([int(part / 2 + part * i) for i in range(16)] + [int(part * i) for i in range(16)])
    for segment in range(2):
        indices = FrameSampling("starts", 16).indices(total, None, segment, segments=2)
        assert indices.tolist() == released[segment::2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("stridden", 4), "got 'stridden'"), (("uniform", 0), "num_frames 0"), (("strided", 4, 0), "stride 0")],
)
def test_bad_frame_sampling_is_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        FrameSampling(*arguments)


@given(
    height=st.integers(16, 2000),
    width=st.integers(16, 2000),
    aspect=st.floats(0.5, 2),
    low=st.floats(0.05, 1),
    seed=st.integers(0, 1000),
)
def test_random_windows_lie_inside_and_respect_scale_and_ratio(height, width, aspect, low, seed):
    crop = CropSampling(aspect, scale=(low, 1.0), ratio=(3 / 4, 4 / 3))
    window = crop.window(height, width, rng(seed))
    assert 0 <= window.y0 < window.y1 <= 1 + 1e-9
    assert 0 <= window.x0 < window.x1 <= 1 + 1e-9
    crop_height, crop_width = (window.y1 - window.y0) * height, (window.x1 - window.x0) * width
    shape = crop_width / crop_height / aspect
    assert 3 / 4 - 1e-6 < shape < 4 / 3 + 1e-6
    largest = min(height * width, height**2 * 4 / 3 * aspect, width**2 * 4 / 3 / aspect)
    assert low * largest * (1 - 1e-6) <= crop_height * crop_width <= largest * (1 + 1e-6)


def test_random_windows_move_and_mirror_half_the_time():
    windows = [CropSampling().window(100, 150, rng(seed)) for seed in range(400)]
    assert len({window.y0 for window in windows}) > 300
    assert 150 < sum(window.flip for window in windows) < 250
    assert not any(CropSampling(flip=False).window(100, 150, rng(seed)).flip for seed in range(50))


def test_without_a_generator_the_window_is_centred_and_never_mirrored():
    assert CropSampling().window(100, 200, None) == CropWindow(0.0, 0.25, 1.0, 0.75)
    assert CropSampling(aspect=2.0).window(100, 100, None) == CropWindow(0.25, 0.0, 0.75, 1.0)


@pytest.mark.parametrize(("height", "width", "aspect"), [(100, 200, 1.0), (333, 100, 1.0), (90, 160, 0.7)])
def test_squashed_frames_are_shown_whole_and_cropped_in_the_outputs_shape(height, width, aspect):
    crop = CropSampling(aspect, scale=(0.5, 0.6), ratio=(1.0, 1.0), framing="squash")
    assert crop.window(height, width, None) == CropWindow(0.0, 0.0, 1.0, 1.0)
    for seed in range(50):
        window = crop.window(height, width, rng(seed))
        side = window.y1 - window.y0
        assert side == pytest.approx(window.x1 - window.x0)
        assert 0.5 <= side**2 <= 0.6 + 1e-9
    whole = CropSampling(aspect, scale=(1.0, 1.0), flip=False, framing="squash")
    assert {whole.window(height, width, rng(seed)) for seed in range(50)} == {CropWindow(0.0, 0.0, 1.0, 1.0)}


def test_a_fit_that_is_none_is_refused():
    with pytest.raises(UserError, match="framing must be 'crop' or 'squash', got 'stretch'"):
        CropSampling(framing="stretch")


@pytest.mark.parametrize("bad", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"ratio": (2.0, 1.0)}])
def test_bad_crops_are_refused(bad):
    with pytest.raises(UserError, match=f"crop {next(iter(bad))}"):
        CropSampling(**bad)


def test_every_part_of_the_key_changes_the_draws_and_nothing_else_does():
    # trailing zeros too: numpy pads a seed with zeros, so that (1, 2) and (1, 2, 0) would be one stream
    keys = [(1, 2, 0), (1, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0, 1), (0, 0, 0), (0, 0, 0, 1)]
    draws = {sample_rng(*key).random() for key in keys}
    assert len(draws) == len(keys)
    assert sample_rng(1, 2, 3).random(4).tolist() == sample_rng(1, 2, 3, 0).random(4).tolist()


def test_epoch_order_is_a_permutation_that_differs_by_seed_and_epoch():
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert epoch_order(0, 0, 50).tolist() == orders[0].tolist()
    assert sample_rng(0, 0, 1).permutation(50).tolist() not in [order.tolist() for order in orders]


def test_ranks_share_out_the_samples_of_a_step_in_order():
    places = [(rank, place) for rank in range(4) for place in range(2)]
    numbers = [sample_number(3, place, batch_size=2, rank=rank, world_size=4) for rank, place in places]
    assert numbers == [sample_number(3, place, batch_size=8) for place in range(8)] == list(range(24, 32))
