"""Captioning on two processes, of texts with very different numbers of tokens: the numbers are those of one."""

import json
from pathlib import Path

import pytest

from fastvtp.model_folder import write_model_folder
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.frozen.towers import make_tower_model
from tests.ranks import run_ranks
from tests.training.labelled import rows_of, write_rows


def _train(rank: int, root: str, output: str, strategy: str) -> None:
    config = apply_overrides(
        get_recipe("videoprism_captioning_tiny"),
        [
            f"data.train={root}/captions.jsonl", f"output_dir={output}", f"model.backbone={root}/backbone",
            f"model.language_model={root}/language", "data.test=none", "device=cpu", "data.num_workers=0",
            "tensorboard=false", "model.num_frames=4", "model.image_size=32", "model.num_queries=4", "batch_size=8",
            "micro_batch=2", "steps=4", "log_every=1", f"parallel.strategy={strategy}",
        ],
    )  # fmt: skip
    train(config, progress_bar=False)


def _records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_learn_captions_as_one_does(strategy, captioned_videos, tmp_path):
    pytest.importorskip("transformers")
    from tests.systems.captioner.languages import make_language_model

    write_model_folder(tmp_path / "backbone", make_tower_model("videoprism"), "videoprism")
    made = make_language_model()
    made.model.save_pretrained(tmp_path / "language")
    made.tokenizer.save_pretrained(tmp_path / "language")
    rows = rows_of(captioned_videos / "train.jsonl")
    texts = ("a ball", "a red ball moves a blue box grows a green ball moves a box", "a", "blue box moves")
    write_rows(
        tmp_path / "captions.jsonl",
        [
            {"video": str(captioned_videos / row["video"]), "caption": texts[number % 4]}
            for number, row in enumerate(rows)
        ],
    )
    _train(0, str(tmp_path), str(tmp_path / "one"), "none")
    run_ranks(_train, tmp_path, str(tmp_path), str(tmp_path / "two"), strategy, processes=2)
    for one, other in zip(_records(tmp_path / "one"), _records(tmp_path / "two"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
