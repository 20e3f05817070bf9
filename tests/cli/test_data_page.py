"""The commands of docs/data.md, from a folder of raw videos to pictures of a model, one after the other."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.test_main import run
from tests.data.clips import truncate, write_clip
from tests.data.test_span_clips import H264

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
COMMANDS = [
    shlex.split(line.partition(" #")[0])[1:]
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
# the same run at the size of a test; the second time it has more steps to do
SMALL = [
    "device=cpu", "data.num_workers=0", "tensorboard=false", "model.width=48", "model.depth=1", "model.num_heads=2",
    "model.decoder_width=24", "model.decoder_num_heads=2", "model.image_size=32", "model.num_frames=4",
    "model.tubelet=2,8,8", "batch_size=4", "log_every=1",
]  # fmt: skip
LOOK = {"plan": ["--reading-seconds", "1"], "prepare": ["--workers", "1"], "evaluate": ["--device", "cpu"]}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """`videos`, of which one is broken, and `test_videos`, of 16:9, each with a text beside it."""
    for folder, count in (("videos", 6), ("test_videos", 4)):
        for number in range(count):
            clip = tmp_path / folder / f"{number}.mp4"
            clip.parent.mkdir(exist_ok=True)
            write_clip(clip, 48 + number, height=144, width=256, fps=24, **H264)
            clip.with_suffix(".txt").write_text(f"clip {number} of the {folder}\n")
    truncate(tmp_path / "videos/0.mp4", tmp_path / "videos/broken.mp4", 0.2)
    (tmp_path / "videos/broken.txt").write_text("broken\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_commands_of_the_page_lead_from_videos_to_a_model(capsys, monkeypatch, here):
    walked, pretrained = [], 0
    for name, *rest in COMMANDS:
        walked.append(name)
        given = [name, *rest, *LOOK.get(name, [])]
        if "simvtp_tiny" in rest:
            pretrained += name == "pretrain"
            at = given.index("simvtp_tiny") + 1
            given[at:at] = [*SMALL, f"steps={2 * max(1, pretrained)}"]
        status, out, err = run(capsys, monkeypatch, *given)
        assert status == (1 if rest[:1] == ["check"] else 0), err
        if rest[:1] == ["check"]:
            assert f"{here}/videos/broken.mp4" in out
            assert "0 of 4 videos" in out
        elif name == "prepare":
            assert "6 clips in 1 shard" in out
            assert "rejected 1: unreadable 1" in out
        elif name == "plan":
            assert "clips a second of a process with no worker" in out
        elif name == "pretrain":
            assert out.splitlines()[-1].startswith(f"{2 * pretrained} steps, 0 undecodable files; see runs/first/rep")
    assert walked == ["data", "prepare", "plan", "data", "pretrain", "pretrain", "evaluate", "visualize"]
    reports = ("runs/first/report.json", "runs/first/eval/report.json")
    report, again = (json.loads((here / name).read_text()) for name in reports)
    assert report["retrieval"] == again["retrieval"]
    assert (report["steps"], report["num_test"]) == (4, 4)
    assert len(json.loads((here / "draws.json").read_text())) == 8
    assert (here / "sheet.png").is_file()
    assert (here / "runs/first/pictures/reconstruction.png").is_file()
