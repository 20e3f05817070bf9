"""Labelled lists beside the synthetic clips, and settings that shrink the fine-tuning recipes to seconds."""

import json
from pathlib import Path

SIZES = [
    "model.width=32", "model.depth=2", "model.num_heads=2", "model.image_size=32", "model.num_frames=4",
    "model.tubelet=2,8,8",
]  # fmt: skip
DECODER = ["model.decoder_width=16", "model.decoder_num_heads=2"]


def settings(train: Path, output_dir: Path, *more: str) -> list[str]:
    """Overrides of any recipe, for training on `train` from scratch."""
    return [
        f"data.train={train}", f"output_dir={output_dir}", "data.test=none", "init=none", "device=cpu",
        "data.num_workers=0", "data.vocab_size=300", "tensorboard=false", *SIZES, "batch_size=8", "steps=6",
        "log_every=1", "checkpoint_every=100", "optimizer.warmup_steps=2", *more,
    ]  # fmt: skip


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def choices(root: Path, split: str) -> Path:
    """The questions of a split with up to three options each, the right one in any place."""
    rows = rows_of(root / f"{split}_questions.jsonl")
    for number, row in enumerate(rows):
        others = sorted({other["answer"] for other in rows if other["type"] == row["type"]} - {row["answer"]})
        options = [*others[:1], "perhaps"]
        options.insert(number % 3, row["answer"])
        row["options"] = options
    return write_rows(root / f"{split}_choices.jsonl", rows)


def classes(root: Path, split: str) -> Path:
    """Each clip of a split with a class: whether the asked colour is one of the warm ones."""
    warm = {"red", "orange", "yellow", "pink"}
    rows = [
        {"video": row["video"], "label": "warm" if row["answer"] in warm else "cold"}
        for row in rows_of(root / f"{split}_questions.jsonl")
        if row["type"] == "colour"
    ]
    unique = {row["video"]: row for row in rows}
    return write_rows(root / f"{split}_classes.jsonl", list(unique.values()))


def several_captions(root: Path) -> Path:
    """The 8 test clips with one to three captions each, 15 in all."""
    rows = rows_of(root / "test.jsonl")
    more = [[f"the clip {i}", "one more"][: i % 3] for i in range(len(rows))]
    return write_rows(
        root / "several.jsonl",
        [{**row, "caption": [row["caption"], *extra]} for row, extra in zip(rows, more, strict=True)],
    )
