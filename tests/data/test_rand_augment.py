"""The policies as random variables, against what their definition says; no pixels here."""

import math
from collections import Counter

import numpy as np
import pytest

from fastvtp.data.rand_augment import OPERATIONS, RandAugment
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.errors import UserError

RELEASED = "rand-m7-n4-mstd0.5-inc1"
ACTING = OPERATIONS[1:-1]
CLIPS = 1500


def drawn(text, clips=CLIPS, **how):
    """Operations and arguments of many clips: names [clips][number], float [clips, number]."""
    policy, rng = RandAugment.parse(text), np.random.default_rng(11)
    pairs = [policy.draw(rng, **how) for _ in range(clips)]
    for places, arguments in pairs[:3]:
        assert (places.dtype, arguments.dtype) == (np.int32, np.float32)
    return [[OPERATIONS[place] for place in places] for places, _ in pairs], np.stack([some for _, some in pairs])


def arguments_of(names, arguments, *wanted):
    return np.array([arguments[clip][slot] for clip, row in enumerate(names) for slot, name in enumerate(row)
                     if name in wanted])  # fmt: skip


def assert_as_often(counts, shares):
    """Pearson's test: a right sample fails about once in ten thousand times (Wilson and Hilferty's quantile)."""
    total, freedom = sum(counts), len(shares) - 1
    statistic = sum((count - total * share) ** 2 / (total * share) for count, share in zip(counts, shares, strict=True))
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def assert_normal(values, mean, spread):
    """Kolmogorov and Smirnov's test, at the same rate."""
    steps = np.arange(len(values) + 1) / len(values)
    expected = np.array([(1 + math.erf((value - mean) / spread / math.sqrt(2))) / 2 for value in np.sort(values)])
    assert max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max()) < 2.23 / math.sqrt(len(values))


def test_four_are_drawn_and_each_acts_half_of_the_time():
    names, _ = drawn(RELEASED)
    acting = Counter(sum(name != "identity" for name in row) for row in names)
    assert_as_often([acting[number] for number in range(5)], [share / 16 for share in (1, 4, 6, 4, 1)])
    by_slot = [Counter(row[slot] != "identity" for row in names)[True] for slot in range(4)]
    assert_as_often(by_slot, [0.25] * 4)


def test_the_fifteen_operations_come_equally_often_and_repeat():
    names, _ = drawn(RELEASED)
    counts = Counter(name for row in names for name in row if name != "identity")
    assert set(counts) == set(ACTING)
    assert len(ACTING) == 15
    assert_as_often([counts[name] for name in ACTING], [1 / 15] * 15)
    assert any(row[0] == row[1] != "identity" for row in names)


@pytest.mark.parametrize(("magnitude", "spread"), [(7.0, 0.5), (4.0, 0.8)])
def test_magnitudes_are_normal_and_signs_even(magnitude, spread):
    names, arguments = drawn(f"rand-m{magnitude:g}-n4-mstd{spread}-inc1")
    enhancements = ("color", "contrast", "brightness", "sharpness")
    for wanted, unit, centre in (
        (("rotate",), 3.0, 0.0),
        (("shear_x", "shear_y"), 0.03, 0.0),
        (("translate_x", "translate_y"), 0.045, 0.0),
        (enhancements, 0.09, 1.0),
    ):
        values = (arguments_of(names, arguments, *wanted) - centre) / unit
        assert_normal(np.abs(values), magnitude, spread)
        assert_as_often([(values < 0).sum(), (values > 0).sum()], [0.5, 0.5])


def test_whole_numbers_of_bits_and_grey_levels():
    names, arguments = drawn(RELEASED)
    below = (1 + math.erf(1 / math.sqrt(2))) / 2  # of a level under 7.5, where 3 of 4 steps begin
    bits = Counter(arguments_of(names, arguments, "posterize").tolist())
    assert set(bits) == {1.0, 2.0}
    assert_as_often([bits[2.0], bits[1.0]], [below, 1 - below])
    thresholds, added = (arguments_of(names, arguments, name) for name in ("solarize", "solarize_add"))
    for values, levels in ((thresholds, (256.5 - thresholds) / 25.6), (added, (added + 0.5) / 11)):
        assert (values == np.floor(values)).all()
        assert abs(levels.mean() - 7) < 4 * 0.5 / math.sqrt(len(levels))
        assert abs(levels.std() - 0.5) < 0.1
    for name in ("auto_contrast", "equalize", "invert"):
        assert not arguments_of(names, arguments, name).any()


def test_magnitudes_are_clipped():
    names, arguments = drawn("rand-m10-n4-mstd3-inc1-p1", clips=500)
    turns = np.abs(arguments_of(names, arguments, "rotate"))
    assert turns.max() == 30
    assert 0.4 < (turns == 30).mean() < 0.6
    assert arguments_of(names, arguments, "posterize").min() == 1
    names, arguments = drawn("rand-m0-n4-mstd2-inc1-p1", clips=500)
    assert 0.4 < (arguments_of(names, arguments, "shear_x") == 0).mean() < 0.6


def test_without_increasing_magnitudes_mean_what_they_do_in_timm():
    names, arguments = drawn("rand-m6-n3-p1", clips=300)
    for name, argument in (("posterize", 2), ("solarize", 153), ("solarize_add", 66), ("brightness", 1.18)):
        values = arguments_of(names, arguments, name)
        np.testing.assert_allclose(values, argument, rtol=1e-6)
        assert len(values) > 20


def test_one_way_operations_differ_always_act_and_are_never_negative():
    names, arguments = drawn("oneway-m5-n2-flip1")
    assert all(len(set(row)) == 2 for row in names)
    counts = Counter(name for row in names for name in row)
    ten = {"identity", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"}
    assert set(counts) == ten | {"rotate", "mirror"}
    assert_as_often([*counts.values()], [0.1] * 10)
    pushed = {"rotate": 15, "shear_x": -0.15, "translate_y": 5 / 224, "contrast": 1, "brightness": 1, "sharpness": 1}
    for name, argument in pushed.items():
        np.testing.assert_allclose(arguments_of(names, arguments, name), argument, rtol=1e-6)
    assert not any("mirror" in row for row in drawn("oneway-m5-n2-flip1", may_mirror=False)[0])
    assert not any("mirror" in row for row in drawn("oneway-m5-n2", clips=300)[0])


def test_defaults_are_timms():
    assert RandAugment.parse("rand") == RandAugment.parse("rand-m10-n2-mstd0-p0.5-inc0")
    assert RandAugment.parse(RELEASED) == RandAugment(4, 7.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rand-m7-nine", "expected timm's spelling, such as \"rand-m7-n4-mstd0.5-inc1\".*, got 'rand-m7-nine'"),
        ("rand-m7-n4-mmax30", "expected timm's spelling"),
        ("augmix-m3", "expected timm's spelling"),
        ("rand-m7-n2.5", "expected timm's spelling"),
        ("rand-m7-inc2", "expected timm's spelling"),
        ("oneway-m5-n2-mstd1", "expected timm's spelling"),
        ("rand-m11", "expected a magnitude from 0 to 10, got 11"),
        ("rand-m9-mstd101-inc1", "rand-m9-mstd101-inc1: a spread .mstd. of 100 or more"),
        ("rand-n0", "expected a number of operations at least 1, got 0"),
        ("rand-p1.5", "expected a probability from 0 to 1, got 1.5"),
        ("oneway-n10", "expected a number of operations from 1 to 9, got 10"),
        ("4,21", "4,21 is now spelled as in timm: rand-m7-n4-p1-inc1 draws and always applies 4 operations"),
        ((2, 15), r"\(2, 15\) is now spelled as in timm: rand-m5-n2-p1-inc1"),
    ],
)
def test_other_policies_are_refused_in_one_line(text, complaint):
    with pytest.raises(UserError, match=f"rand_augment: {complaint}") as raised:
        ClipAugmentation(rand_augment=text)
    assert "\n" not in str(raised.value)
