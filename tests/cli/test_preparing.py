"""`fastvtp prepare` as it is called, and what it says."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastvtp.cli.main import app
from fastvtp.errors import UserError
from fastvtp.evaluation.report import REPORT_NAME
from tests.preparation.sets import captioned, digests, run


def call(*arguments, fails=None):
    done = CliRunner().invoke(app, ["prepare", *map(str, arguments), "--quiet"])
    if fails is not None:
        assert isinstance(done.exception, UserError)
        assert re.search(fails, str(done.exception))
    elif done.exception is not None:
        raise done.exception
    return done.output


def test_from_a_list_to_the_next_command(tmp_path):
    source = captioned(tmp_path / "in", 3, 16, 64, 96)
    (tmp_path / "in" / "2.mp4").write_bytes(b"no video")
    output = tmp_path / "out"
    said = call(source, output, "--short-side", 32, "--samples-per-shard", 2, "--workers", 1)
    assert "2 clips in 1 shard, " in said
    assert "rejected 1: unreadable 1\n  v2: not a video" in said
    assert f"next: fastvtp plan RECIPE data.train={output}\n" in said
    report = json.loads((output / REPORT_NAME).read_bytes())
    assert report["bytes"]["sources"] == sum((tmp_path / "in" / f"{n}.mp4").stat().st_size for n in (0, 1))
    assert report["decoding"]["clips"] == 2
    assert 0 < report["decoding"]["cpu_ms_after"] < 1000
    assert sum(report["histograms"]["seconds"]["counts"]) == 2
    page = (output / "report.html").read_text()
    assert "not a video" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert page.count("<svg") == len(report["histograms"])


def test_jobs_of_an_array(tmp_path):
    source = captioned(tmp_path / "in", 4)
    every = ("--samples-per-shard", 2)
    call(source, tmp_path / "whole", *every)
    call(source, tmp_path / "out", *every, "--shard", "0/2")
    call(source, tmp_path / "out", *every, "--finish", fails=r"out: shards 000001 of 2 are not finished")
    call(source, tmp_path / "out", *every, "--shard", "1/2")
    call(source, tmp_path / "out", *every, "--finish")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    call(source, tmp_path / "out", *every, "--shard", "2/2", fails=r"shard must be I/N with 0 <= I < N, got 2/2")
    call(source, tmp_path / "out", *every, "--shard", "two", fails=r"--shard must be I/N, such as 0/16, got 'two'")


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--codec", "h265"), r"no codec 'h265'; did you mean 'hevc'"), (("--engine", "dask"), r"engine must be one of")],
)
def test_wrong_options_are_named(tmp_path, options, message):
    call(captioned(tmp_path / "in", 1), tmp_path / "out", *options, fails=message)


def test_shards_are_not_written_to_a_store(tmp_path, monkeypatch):
    """A path has one slash of the two of a URL, and would be a folder of that name here."""
    monkeypatch.chdir(tmp_path)
    source = captioned(tmp_path / "in", 1)
    said = r"^s3://bucket/out: is a URL, expected a folder of this machine: prepare to one, then copy it there"
    call(source, "s3://user:secret@bucket/out", fails=said)
    call(source, "s3://bucket/out", "--finish", fails=said)
    with pytest.raises(UserError, match=said):
        run(source, Path("s3://bucket/out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
