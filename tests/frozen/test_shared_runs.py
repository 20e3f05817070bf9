"""Features and probes of several processes (gloo, CPU) against those of one: equal to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastvtp import processes
from fastvtp.architecture import architecture_of
from fastvtp.data.windows import Windows
from fastvtp.errors import UserError
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.frozen import features as features_module
from fastvtp.frozen import localization_runs, runs
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import FeatureSettings
from fastvtp.frozen.training_heads import HeadTraining
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.catalogue import open_model
from tests.frozen.frozen_clips import write_classes, write_rows
from tests.frozen.towers import make_tower_model
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
# two views of each of three videos a file: batches of at most 4 views are of 3
SETTINGS, PROTOCOL = FeatureSettings(shard_size=3), EvaluationProtocol(num_workers=0, batch_size=4, views=(2, 1))
TRAINING = HeadTraining(steps=4, batch_size=4, warmup_steps=1, learning_rate=1e-2)
BAD = ("green/2", "red/1", "red/2", "red/3")  # one of the third file, and the whole fourth
HEAD = {"num_heads": 2, "head_dim": 8, "progress_bar": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, and 13 clips in five files of features, of which some are no videos, see `BAD`."""
    root = tmp_path_factory.mktemp("shared_runs")
    model = make_tower_model("videomae")
    write_model_folder(root / "model", model, architecture_of(model).name)
    clips = write_classes(root / "clips", per_class=4)
    write_classes(root / "more", per_class=1, names=("red",))
    (root / "more/red/0.mp4").rename(clips / "red/4.mp4")
    for name in BAD:
        (clips / f"{name}.mp4").write_text("no film")
    write_classes(root / "test", per_class=3, names=("red", "blue"))
    (root / "test/red/1.mp4").write_text("no film")
    return root


def extract(place: Path, name: str, data: str = "clips") -> FeatureSet:
    opened = open_model(place / "model", torch.device("cpu"))
    return runs.extract(opened, place / data, place / name, SETTINGS, protocol=PROTOCOL, progress_bar=False)


def extract_on(_: int, root: str, name: str, most: int) -> tuple[str, list[str]]:
    """What comes of an extraction in which no process can write more than `most` files, and what this one wrote."""
    written, write = [], features_module.write_atomically

    def writing(path: Path, content: bytes) -> None:
        if path.name.startswith("shard") and path.stem not in written and len(written) == most:
            raise UserError("no space left")
        write(path, content)
        if path.suffix == ".json" and path.name.startswith("shard"):
            written.append(path.stem)

    features_module.write_atomically = writing
    try:
        said = str(len(extract(Path(root), name)))
    except UserError as error:
        said = f"{error}"
    finally:
        features_module.write_atomically = write
    return said, written


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(place) -> dict[str, bytes]:
    made = extract(place, "whole")
    assert len(made) == 9
    assert sorted(made.left_out) == [str(place / f"clips/{name}.mp4") for name in BAD]
    assert all(reason.startswith("not a video") for reason in made.left_out.values())
    return content(place / "whole")


def test_features_do_not_depend_on_the_processes_that_an_extraction_is_gone_on_with(place, whole, tmp_path):
    """Two processes write one file each at most, then one process one, then three what is left: the first of them a
    file without a single video, the last none."""
    (tmp_path / "two").mkdir()
    stopped = run_ranks(extract_on, tmp_path / "two", str(place), "resumed", 1, processes=2)
    assert {said.partition(": ")[2] or said for said, _ in stopped} == {"no space left"}
    there = {path.stem for path in (place / "resumed").glob("shard*.json")}
    assert there == {name for _, written in stopped for name in written} <= {"shard_00000", "shard_00001"}
    said, written = extract_on(0, str(place), "resumed", 3 - len(there))
    assert (said, {*there, *written}) == ("no space left", {"shard_00000", "shard_00001", "shard_00002"})
    found = run_ranks(extract_on, tmp_path, str(place), "resumed", 9, processes=3)
    assert found == [("9", ["shard_00003"]), ("9", ["shard_00004"]), ("9", [])]
    assert content(place / "resumed") == whole


def test_batches_end_where_files_do(place, whole, caplog):
    with caplog.at_level("INFO"):
        extract(place, "whole")
    assert "batches are of 3 views, not of 4: none goes across two files of 3 videos, 6 views" in caplog.text
    for missing in ("shard_00001", "shard_00003"):
        (place / "whole" / f"{missing}.json").unlink()
    extract(place, "whole")
    assert content(place / "whole") == whole


def windowed(_: int, root: str, name: str) -> list[str]:
    opened, windows = open_model(Path(root) / "model", torch.device("cpu")), Windows(0.5, 0.25)
    made = runs.extract(
        opened, Path(root) / "clips", Path(root) / name, SETTINGS,
        protocol=PROTOCOL, windows=windows, progress_bar=False,
    )  # fmt: skip
    return [record.source for record in made.records]


def test_windows_are_cut_by_one_process_and_their_features_those_of_one(place, tmp_path):
    sources = windowed(0, str(place), "windows_of_one")
    assert len(sources) > 20
    assert run_ranks(windowed, tmp_path, str(place), "windows_of_two", processes=2) == [sources, sources]
    assert content(place / "windows_of_two") == content(place / "windows_of_one")


def probed(_: int, root: str, output: str) -> dict[str, Any]:
    """Reports of a probe from features, of one from videos, and of a head for segments; what the second says; and what
    is raised where the first process has no training videos."""
    place, error = Path(root), ""
    features = (place / "whole", place / "f_test")
    cached = runs.train_probe(*features, place / output / "cached", TRAINING, **HEAD)
    opened = open_model(place / "model", torch.device("cpu"))
    videos = runs.ProbeVideos(train=place / "clips", test=place / "test")
    protocol = EvaluationProtocol(num_workers=0, batch_size=3, views=(2, 1))
    kept = place / output / "fly"
    fly = runs.train_on_videos(opened, videos, kept, TRAINING, protocol=protocol, **HEAD)
    said = runs.classify(opened, kept, place / "test", protocol=protocol, progress_bar=False)
    annotated = (localization_runs.AnnotatedFeatures(each, place / "segments.jsonl") for each in features)
    head = localization_runs.localize(*annotated, place / output / "head", TRAINING, hidden=8, progress_bar=False)
    try:
        own = place / ("clips" if processes.rank() else "absent")
        runs.train_on_videos(opened, runs.ProbeVideos(train=own), None, TRAINING, **HEAD)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    reports = {"cached": cached, "fly": fly, "head": head}
    return {"said": said, "error": error, **{name: json.dumps(report) for name, report in reports.items()}}


def test_probes_and_heads_are_those_of_one_process(place, whole, tmp_path):
    extract(place, "f_test", "test")
    segment = {"duration": 8, "segments": [{"start": 0, "end": 5, "label": "shown"}]}
    annotated = [record for name in ("whole", "f_test") for record in FeatureSet(place / name).records]
    rows = {record.id: {"id": record.id, "video": record.video, **segment} for record in annotated}
    write_rows(place / "segments.jsonl", *rows.values())
    alone = probed(0, str(place), "alone")
    assert json.loads(alone["fly"])["num_test"] == 5
    assert alone["error"] == f"FileNotFoundError: {place / 'absent'}: no such file or folder"
    first, second = run_ranks(probed, tmp_path, str(place), "together", processes=2)
    assert first == alone
    assert second == alone | {"error": alone["error"].replace("FileNotFoundError", "FailedElsewhereError: process 0")}
    for name in ("cached", "fly", "head"):
        assert content(place / "together" / name) == content(place / "alone" / name)
