"""The measurement of encodings: what it compares, and that a preparation is what it was afterwards."""

import numpy as np
import pytest

from benchmarks.steps.clip_encodings import CHOICES, fidelity, similarity, table
from fastvtp.preparation.encoding import ENCODERS
from tests.data.clips import write_clip


def test_similarity_is_that_of_the_paper():
    """One for a picture and itself; for two flat ones (2 a b + c1) / (a^2 + b^2 + c1), with c1 = 2.55^2."""
    picture = np.random.default_rng(0).uniform(0, 255, (20, 30))
    assert similarity(picture, picture) == pytest.approx(1)
    flat = similarity(np.full((9, 9), 100.0), np.full((9, 9), 50.0))
    assert flat == pytest.approx((2 * 100 * 50 + 6.5025) / (100**2 + 50**2 + 6.5025))
    assert similarity(picture, 255 - picture) < 0


def test_all_choices_are_measured_beside_the_video(tmp_path):
    source, before = write_clip(tmp_path / "a.mp4", 40, 64, 96), dict(ENCODERS)
    (tmp_path / "out").mkdir()
    lines = table(source, tmp_path / "out", clips=1).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["unprepared", *CHOICES]
    assert before == ENCODERS
    psnr, ssim = fidelity(source, source)
    assert psnr == pytest.approx(10 * np.log10(255**2 / 1e-3))
    assert ssim == pytest.approx(1)
