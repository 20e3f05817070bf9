"""An ablation from settings to files on disk. An interrupted one continues where it stopped."""

import datetime
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastvtp.ablation.held_out import HeldOut, load_clips
from fastvtp.ablation.plot import plot_ablation
from fastvtp.ablation.report import Report, claim_record
from fastvtp.ablation.studies import Run, Scale, Study
from fastvtp.data.synthetic import (
    SyntheticConfig,
    SyntheticDataset,
    generate_dataset,
)
from fastvtp.data.text import Tokenizer
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.files import write_atomically
from fastvtp.model_folder import TOKENIZER_NAME
from fastvtp.settings import choose_device
from fastvtp.training.config import (
    TrainConfig,
    differing_settings,
    save_config,
)
from fastvtp.training.loop import train

RESULT_NAME, BASE_NAME = "ablation.json", "base_config.json"
# what may differ when an ablation is continued: no score depends on it
_FREE = {"output_dir", "data.train", "data.test", "data.tokenizer", "data.num_workers", "checkpoint_every"}


def ablate(
    system: Study,
    config: TrainConfig,
    scale: Scale,
    *,
    study: str = "all",
    keep: bool = False,
    command: str = "",
    progress_bar: bool = True,
) -> Report:
    """Train and score the runs of a study in `config.output_dir`; those that are finished there are not repeated.

    config: the base run, from `system.base_config`. keep: do not delete the weights of the runs. command: for the
    record.
    Writes ablation.json after every run, then ablation.md and ablation.png. A run whose loss is not finite is noted
    with its error, and the others go on.

    Raises UserError where the folder holds an ablation with other settings, or for an unknown study.
    """
    output, device = Path(config.output_dir), choose_device(config.device)
    runs = system.plan_runs(study, config.model, scale)
    _claim_folder(output, config, scale)
    synthetic = SyntheticConfig(
        num_train=scale.num_train,
        num_test=scale.num_test,
        num_frames=scale.clip_frames,
        height=scale.clip_size,
        width=scale.clip_size,
        seed=config.seed,
    )
    dataset = generate_dataset(output / "data", synthetic, progress=progress_bar)
    lists = output / "lists"
    tokenizer = _shared_tokenizer(dataset, config, lists / TOKENIZER_NAME)
    state = _read_state(output / RESULT_NAME)
    held_out = _held_out(dataset, tokenizer, config, scale, device)
    state["commands"] = list(dict.fromkeys([*state.get("commands", ()), command]))
    state |= {"about": _about(config, scale, device) | system.about(config, scale), "chance": system.chance(held_out)}
    whole = replace(config.data, train=str(dataset.train), test=None, tokenizer=str(lists / TOKENIZER_NAME))
    base = system.prepare(replace(config, data=whole), scale, output / "start")

    missing = [run for run in runs if run.name not in state["runs"]]
    with tqdm(missing, desc="ablation", unit="run", disable=not progress_bar, smoothing=0, dynamic_ncols=True) as bar:
        for run in bar:
            bar.set_postfix_str(run.name)
            folder = output / "runs" / run.name.replace(" ", "_").replace(",", "").replace("%", "pc")
            state["runs"][run.name] = _finish(system, run, base, dataset, held_out, lists, folder)
            _write_state(output / RESULT_NAME, state)
            if not keep:  # only now: a run without a record would be trained anew
                for weights in ("checkpoints", "model"):
                    shutil.rmtree(folder / weights, ignore_errors=True)
    report = system.report(state, config.model, scale)
    state["claims"] = [claim_record(claim) for claim in report.claims()]
    _write_state(output / RESULT_NAME, state)
    write_atomically(output / "ablation.md", report.markdown().encode())
    if panels := report.panels():
        note = "grey band: ± the standard deviation of the base run over its seeds"
        plot_ablation(output / "ablation.png", panels, title=f"{report.system} ablation", note=note)
    return report


def _finish(
    system: Study,
    run: Run,
    base: TrainConfig,
    dataset: SyntheticDataset,
    held_out: HeldOut,
    lists: Path,
    folder: Path,
) -> dict[str, Any]:
    """Train and score one run, from its last checkpoint where it was interrupted. Returns what ablation.json keeps."""
    config = run.config(base)
    data = replace(config.data, train=str(_training_list(run, dataset, lists)))
    config = replace(config, data=data, output_dir=str(folder))
    settings = {
        "date": datetime.date.today().isoformat(),
        "task": config.task,
        "model": run.model,
        "seed": config.seed,
        "share": run.share,
        "shuffled": run.shuffled,
    }
    try:
        result = train(config, resume=True, progress_bar=False)
    except FloatingPointError as error:
        return {**settings, "error": str(error)}
    return {
        **settings,
        "steps": 0 if run.untrained else result.steps,
        "train_seconds": round(result.train_seconds, 2),
        "metrics": result.metrics,
        "scores": system.score(result.model, held_out),
    }


def _training_list(run: Run, dataset: SyntheticDataset, folder: Path) -> Path:
    """Return the list of a run's clips: all of them, the first ones, or all with the captions of others."""
    rows = [json.loads(line) for line in dataset.train.read_text().splitlines()]
    kept = rows[: max(2, round(run.share * len(rows)))]
    captions = [row["caption"] for row in kept]
    if run.shuffled:
        # not by one place: neighbours may be twins, whose captions differ in a word
        half = len(captions) // 2
        captions = captions[half:] + captions[:half]
    path = folder / f"train_{run.share:g}{'_shuffled' if run.shuffled else ''}.jsonl"
    videos = (os.path.relpath(dataset.root / row["video"], folder) for row in kept)
    lines = [
        json.dumps({"id": row["id"], "video": video, "caption": caption})
        for row, video, caption in zip(kept, videos, captions, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(line + "\n" for line in lines).encode())
    return path


def _shared_tokenizer(dataset: SyntheticDataset, config: TrainConfig, path: Path) -> Tokenizer:
    """Return one tokenizer, of all training captions, for all runs: word losses of different vocabularies do not
    compare."""
    if not path.is_file():
        captions = [json.loads(line)["caption"] for line in dataset.train.read_text().splitlines()]
        path.parent.mkdir(parents=True, exist_ok=True)
        CaptionTokenizer.train(captions, vocab_size=config.data.vocab_size).save(path)
    return load_tokenizer(path)


def _held_out(
    dataset: SyntheticDataset, tokenizer: Tokenizer, config: TrainConfig, scale: Scale, device: torch.device
) -> HeldOut:
    model = config.model
    masks = replace(model, **tokenizer.settings_of(model))
    probe_train, test = (
        load_clips(path, tokenizer, model, limit=limit, num_workers=config.data.num_workers, device=device)
        for path, limit in ((dataset.train, scale.probe_clips), (dataset.test, scale.num_test))
    )
    return HeldOut(probe_train, test, masks)


def _claim_folder(output: Path, config: TrainConfig, scale: Scale) -> None:
    """Make the folder this ablation's, or raise UserError where it is another's."""
    base, wanted = output / BASE_NAME, json.loads(json.dumps(asdict(scale)))
    scale_path = output / "scale.json"
    if base.is_file():
        differing = [f"scale.{name}" for name, value in _read_json(scale_path).items() if wanted.get(name) != value]
        differing += sorted(set(differing_settings(config, base)) - _FREE)
        if differing:
            raise UserError(
                f"{output} holds an ablation with other settings ({', '.join(differing)}): "
                "set them back, choose another --output, or delete the folder"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(scale_path, (json.dumps(wanted, indent=2) + "\n").encode())
    save_config(config, base)


def _about(config: TrainConfig, scale: Scale, device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{name}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "steps": config.steps,
        "batch size": config.batch_size,
        "training clips": scale.num_train,
        "test clips": scale.num_test,
    }


def _read_state(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {"runs": {}}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable record of an ablation: {error}") from None


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(state, indent=2) + "\n").encode())
