"""Scenes of a video as samples, against cuts that were put there."""

import numpy as np
import pytest

from fastvtp.data.video.decoding import Video
from fastvtp.errors import UserError
from fastvtp.preparation.scenes import check_scenes, scenes_of
from fastvtp.preparation.settings import SceneCuts
from tests.data.clips import write_clip, write_lines
from tests.preparation.sets import decoded, described, members, pictures, run


def movie(path, lengths, **encoding):
    """Scenes of these lengths in frames, each another picture."""
    scenes = [pictures(number, length, 48, 64) for number, length in enumerate(lengths)]
    return write_clip(path, frames=np.concatenate(scenes), **encoding)


def test_without_the_library_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(UserError, match=r"scenes need PySceneDetect: pip install 'fastvtp\[scenes\]'"):
        check_scenes()


@pytest.mark.parametrize(
    ("lengths", "shown", "shortest", "expected"),
    [
        ((20, 30, 10), (0, 60), 1.0, [(0, 20), (20, 50), (50, 60)]),
        ((20, 30, 10), (5, 55), 0.5, [(5, 20), (20, 50), (50, 55)]),
        ((20, 4, 30), (0, 54), 1.0, [(0, 20), (20, 54)]),  # half a second is no scene of its own
        ((20, 30, 4), (0, 54), 1.0, [(0, 20), (20, 54)]),  # nor at the end
        ((30,), (0, 30), 1.0, [(0, 30)]),
    ],
)
def test_cuts_are_found(tmp_path, lengths, shown, shortest, expected):
    pytest.importorskip("scenedetect")
    source = movie(tmp_path / "a.mp4", lengths, fps=8, gop=250)
    cuts = SceneCuts(scenes=True, scene_seconds=shortest)
    with Video(str(source)) as video:
        found = scenes_of(video, range(*shown), cuts)
    assert [(scene.start, scene.stop) for scene in found] == expected


def test_scenes_are_samples_of_their_own(tmp_path):
    pytest.importorskip("scenedetect")
    movie(tmp_path / "a.mp4", (16, 24), fps=8)
    movie(tmp_path / "b.mp4", (16,), fps=8)
    rows = [{"video": "a.mp4", "caption": "a film", "id": "film"}, {"video": "b.mp4", "caption": "a clip"}]
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out", scenes=True)
    assert report is not None
    told = described(tmp_path / "out" / "000000.tar")
    assert [(each["id"], each["source"]["start"], each["source"]["end"], each["clip"]["frames"]) for each in told] == [
        ("film 0-2", 0.0, 2.0, 16),
        ("film 2-end", 2.0, None, 24),
        ("b.mp4", 0.0, None, 16),
    ]
    clip = np.stack(decoded(members(tmp_path / "out" / "000000.tar")["0000000001.mp4"]))
    apart = [np.abs(clip.astype(int) - pictures(scene, 24, 48, 64)).mean() for scene in (0, 1)]
    assert apart[1] < 10 < 40 < apart[0]
