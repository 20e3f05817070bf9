"""Motion and hashes against values worked out by hand, and duplicates against a comparison of all pairs."""

import numpy as np

from fastvtp.preparation.looks import LookAlikes, MotionMeter, hashed_frames, look_of, small_grey


def test_brightness_of_cells():
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:2, :3] = 100
    frame[2:, 3:, 1] = 200
    np.testing.assert_array_equal(small_grey(frame, 2, 2), [[100, 0], [0, 200 * 150 / 256]])  # BT.601: 0.587
    assert small_grey(frame, 8, 9).shape == (8, 9)


def test_brightness_is_exact():
    """To the last digit, by whole numbers: scores are compared byte for byte, whoever computed them."""
    frame = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    want = np.empty((8, 9))
    for y in range(8):
        for x in range(9):
            cell = frame[y * 37 // 8 : (y + 1) * 37 // 8, x * 53 // 9 : (x + 1) * 53 // 9].reshape(-1, 3).tolist()
            want[y, x] = sum(77 * r + 150 * g + 29 * b for r, g, b in cell) // len(cell) / 256
    np.testing.assert_array_equal(small_grey(frame, 8, 9), want)


def test_motion_is_the_mean_difference_an_eighth_of_a_second_apart():
    """Brightness rises by 10 each 1/16 s: pictures that are compared differ by 20. A still clip has none."""
    meter, still = MotionMeter(), MotionMeter()
    for k in range(9):
        meter.see(k / 16, np.full((40, 50, 3), 10 * k, np.uint8))
        still.see(k / 16, np.full((40, 50, 3), 77, np.uint8))
    assert meter.motion == 20.0
    assert still.motion == 0.0
    assert MotionMeter().motion == 0.0


def test_hashed_frames_are_middles_of_quarters():
    assert hashed_frames(range(100, 180)) == [110, 130, 150, 170]
    assert hashed_frames(range(5, 6)) == [5, 5, 5, 5]


def test_looks_survive_scaling_and_tell_pictures_apart():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (2, 8, 9)).astype(np.uint8) for _ in range(4)]
    pictures = [[np.kron(each[i], np.ones((8, 8)))[..., None].repeat(3, 2).astype(np.uint8) for each in coarse]
                for i in range(2)]  # fmt: skip
    halves = [picture[::2, ::2] for picture in pictures[0]]
    assert look_of(pictures[0]) == look_of(halves)
    alike = LookAlikes(12)
    assert alike.find("a", look_of(pictures[0])) is None
    assert alike.find("b", look_of(pictures[1])) is None
    assert alike.find("c", look_of(halves)) == ("a", 0)


def test_black_and_white_are_not_alike():
    black, white = ([np.full((32, 32, 3), level, np.uint8)] * 4 for level in (0, 255))
    alike = LookAlikes(12)
    assert alike.find("black", look_of(black)) is None
    assert alike.find("white", look_of(white)) is None
    assert alike.find("dark", look_of([np.full((32, 32, 3), 9, np.uint8)] * 4)) == ("black", 0)


def test_no_pair_is_missed():
    """The first kept look within the bound is found, as comparing with every one tells."""
    rng = np.random.default_rng(1)
    looks = [rng.integers(0, 2, 256) for _ in range(40)]
    for base in looks[:20]:
        near = base.copy()
        near[rng.choice(256, rng.integers(0, 25), replace=False)] ^= 1
        looks.append(near)
    alike, kept = LookAlikes(12), []
    for number, bits in enumerate(looks):
        within = [name for name, other in kept if (bits != other).sum() <= 12]
        found = alike.find(str(number), np.packbits(bits).tobytes().hex() + "80808080")
        assert (found is not None) == bool(within)
        if found is None:
            kept.append((str(number), bits))
        else:
            assert found[0] in within
