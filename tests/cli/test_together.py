"""Commands on two processes, as torchrun starts them."""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import typer

from fastvtp.architecture import architecture_of
from fastvtp.cli import together
from fastvtp.data import synthetic
from fastvtp.data.synthetic import SyntheticConfig
from fastvtp.errors import FailedElsewhereError, UserError
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from tests.forking import forking_context
from tests.frozen.frozen_clips import write_classes
from tests.ranks import free_port
from tests.training.labelled import DECODER, SIZES

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")


class Ended(NamedTuple):
    """A process that has ended: its exit status, and what it printed."""

    status: int | None
    out: str
    err: str


def _process(rank: int, port: int, arguments: list[str], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):
        with (folder / f"{rank}.{stream.fileno()}").open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["fastvtp", *arguments]
    synthetic.SyntheticConfig = lambda seed: SyntheticConfig(12, 6, num_frames=8, height=64, width=64, seed=seed)
    runpy.run_module("fastvtp", run_name="__main__")


def commands(folder: Path, *arguments: list[str]) -> list[Ended]:
    """What comes of `fastvtp ARGUMENTS`, one list a process, on two processes that know of each other."""
    port = free_port()
    folder.mkdir()
    started = [
        forking_context().Process(target=_process, args=(rank, port, given, folder))
        for rank, given in enumerate(arguments)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    ended = []
    for rank, process in enumerate(started):
        if process.is_alive():
            process.kill()
        ended.append(Ended(process.exitcode, *((folder / f"{rank}.{stream}").read_text() for stream in (1, 2))))
    return ended


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A classifier and 7 clips, of which one is none."""
    root = tmp_path_factory.mktemp("together")
    sizes = {"num_frames": 4, "image_size": 32, "tubelet": (2, 8, 8), "width": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = build_model(VideoClassifierConfig(**sizes, num_classes=3))
    write_model_folder(root / "model", model, architecture_of(model).name)
    (root / "model/classes.json").write_text('["blue", "green", "red"]')
    write_classes(root / "clips", per_class=2)
    (root / "clips/red/2.mp4").write_text("no film")
    return root


COMMON = ["--num-workers", "0", "--device", "cpu", "--batch-size", "2"]


def test_a_report_is_written_and_printed_once(place, tmp_path):
    command = ["evaluate", str(place / "model"), str(place / "clips"), *COMMON, "--output"]
    first, second = commands(tmp_path / "two", *[[*command, str(place / "together")]] * 2)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    report = json.loads(first.out)
    assert second.out == ""
    assert "batch/s" not in second.err  # a progress bar
    assert "batch/s" in first.err
    assert (report["num_test"], report["bad_files"]["count"]) == (6, 1)
    assert json.loads((place / "together/report.json").read_text()) == report


DEMO = [
    "demo", "device=cpu", "data.num_workers=0", "data.vocab_size=300", "tensorboard=false", *SIZES, *DECODER,
    "batch_size=4", "micro_batch=2", "steps=4", "checkpoint_every=4",
]  # fmt: skip


@pytest.mark.parametrize(
    "options", [pytest.param([], id="alone"), pytest.param(["--compare-presets"], marks=pytest.mark.long, id="presets")]
)
def test_a_demo_is_made_by_both(tmp_path, options):
    first, second = commands(tmp_path / "two", *[[*DEMO, *options, f"output_dir={tmp_path / 'demo'}"]] * 2)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert first.out.count("by chance: R1 16.7\nreport, pictures and gallery are in") == 1
    assert second.out == ""
    report = json.loads((tmp_path / "demo/report.json").read_text())
    assert (report["steps"], report["num_test"]) == (4, 6)
    assert set(report.get("presets", ())) == ({"fastvtp", "official"} if options else set())
    assert (tmp_path / "demo/reconstruction.png").is_file()


def test_one_line_says_why_all_end(place, tmp_path):
    command = ["extract", str(place / "model"), str(place / "clips"), *COMMON, "--output", str(place / "features")]
    absent = [str(place / "absent") if argument == str(place / "clips") else argument for argument in command]
    ended = commands(tmp_path / "two", command, absent)
    assert [(status, out) for status, out, _ in ended] == [(2, "")] * 2
    said = [line for process in ended for line in process.err.splitlines() if line.startswith("fastvtp")]
    assert said == [f"fastvtp, process 1: {place / 'absent'}: no such file or folder"]
    assert "Traceback" not in ended[0].err + ended[1].err
    assert not (place / "features").exists()


def test_the_first_of_a_machine_speaks_before_there_is_a_group(monkeypatch):
    def fails() -> None:
        raise UserError("no such device")

    for local, kind in (("0", UserError), ("1", FailedElsewhereError)):
        monkeypatch.setenv("LOCAL_RANK", local)
        with pytest.raises(kind, match="no such device") as raised:
            together.alike(fails)
        assert type(raised.value) is kind
    assert together.alike(lambda: 3) == 3


def test_what_cannot_be_shared_is_done_once(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        together.by_first(lambda *, what: typer.echo(what))(what=f"done by {rank}")
        together.say(f"said by {rank}")
    assert capsys.readouterr().out == "done by 0\nsaid by 0\n"
