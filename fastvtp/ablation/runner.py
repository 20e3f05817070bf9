"""An ablation from settings to files on disk. An interrupted one continues where it stopped."""

import datetime
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastvtp import processes
from fastvtp.ablation.held_out import HeldOut, load_clips
from fastvtp.ablation.plot import plot_ablation
from fastvtp.ablation.queue import Queue, folder_name
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

logger = logging.getLogger(__name__)

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

    The processes of a group, all of which call this, or those that torchrun started, take one run after another from a
    queue in the folder, which all of them must see: each trains and scores whole runs by itself, on its own device, so
    that scores are those of one process. The first makes what the runs share, and writes the files. Where one fails,
    the others end the runs that they are at. All return the report.

    Raises UserError where the folder holds an ablation with other settings, or for an unknown study.
    """
    output, device = Path(config.output_dir), processes.own_device(choose_device(config.device))
    lists = output / "lists"

    def prepare() -> tuple[SyntheticDataset, TrainConfig, dict[str, Any]]:
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
        _write_tokenizer(dataset, config, lists / TOKENIZER_NAME)
        whole = replace(config.data, train=str(dataset.train), test=None, tokenizer=str(lists / TOKENIZER_NAME))
        base = system.prepare(replace(config, data=whole), scale, output / "start")
        for run in runs:
            _write_training_list(run, dataset, lists)
        state = _read_state(output / RESULT_NAME)
        if left := queue.results():  # of processes that were ended before the first took them in
            state["runs"] |= left
            _write_state(output / RESULT_NAME, state)
        queue.clear()
        state["commands"] = list(dict.fromkeys([*state.get("commands", ()), command]))
        return dataset, base, state

    def train_and_score() -> None:
        held_out = _held_out(dataset, load_tokenizer(lists / TOKENIZER_NAME), config, scale, device)
        about = _about(config, scale, device) | system.about(config, scale)
        state.update({"about": about, "chance": system.chance(held_out)})
        shown = progress_bar and processes.is_first()
        with tqdm(
            total=len(missing), desc="ablation", unit="run", disable=not shown, smoothing=0, dynamic_ncols=True
        ) as bar:
            for run in queue.take(missing):
                bar.set_postfix_str(run.name)
                folder = output / "runs" / folder_name(run)
                with _telling_at_once(run), processes.alone():
                    result = _finish(system, run, base, held_out, _list_of(run, lists), folder)
                queue.put(run, result)
                if processes.is_first():
                    _write_state(output / RESULT_NAME, with_results())
                if not keep:  # only now: a run without a record would be trained anew
                    for weights in ("checkpoints", "model"):
                        shutil.rmtree(folder / weights, ignore_errors=True)
                bar.update(len(queue.results()) - bar.n)

    def with_results() -> dict[str, Any]:
        found = queue.results()
        return state | {"runs": state["runs"] | {run.name: found[run.name] for run in missing if run.name in found}}

    def conclude() -> dict[str, Any]:
        final = with_results()
        report = system.report(final, config.model, scale)
        final["claims"] = [claim_record(claim) for claim in report.claims()]
        _write_state(output / RESULT_NAME, final)
        queue.clear()
        write_atomically(output / "ablation.md", report.markdown().encode())
        if panels := report.panels():
            note = "grey band: ± the standard deviation of the base run over its seeds"
            plot_ablation(output / "ablation.png", panels, title=f"{report.system} ablation", note=note)
        return final

    with processes.process_group(device), processes.patience():  # one run may take as long as many
        runs = processes.all_or_none(lambda: system.plan_runs(study, config.model, scale))
        queue = Queue(output / "queue")
        dataset, base, state = processes.first_alone(prepare)
        missing = [run for run in runs if run.name not in state["runs"]]
        processes.all_or_none(train_and_score)
        return system.report(processes.first_decides(conclude), config.model, scale)


@contextmanager
def _telling_at_once(run: Run) -> Iterator[None]:
    """Log what goes wrong with a run of several processes: others may be at theirs for hours before all end with it."""
    try:
        yield
    except Exception as error:
        if processes.size() > 1:
            logger.error("%s: %s; the other processes end the runs that they are at", run.name, error)
        raise


def _finish(
    system: Study,
    run: Run,
    base: TrainConfig,
    held_out: HeldOut,
    clips: Path,
    folder: Path,
) -> dict[str, Any]:
    """Train and score one run, from its last checkpoint where it was interrupted. Returns what ablation.json keeps."""
    config = run.config(base)
    config = replace(config, data=replace(config.data, train=str(clips)), output_dir=str(folder))
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


def _list_of(run: Run, folder: Path) -> Path:
    return folder / f"train_{run.share:g}{'_shuffled' if run.shuffled else ''}.jsonl"


def _write_training_list(run: Run, dataset: SyntheticDataset, folder: Path) -> None:
    """Write the list of a run's clips: all of them, the first ones, or all with the captions of others."""
    rows = [json.loads(line) for line in dataset.train.read_text().splitlines()]
    kept = rows[: max(2, round(run.share * len(rows)))]
    captions = [row["caption"] for row in kept]
    if run.shuffled:
        # not by one place: neighbours may be twins, whose captions differ in a word
        half = len(captions) // 2
        captions = captions[half:] + captions[:half]
    videos = (os.path.relpath(dataset.root / row["video"], folder) for row in kept)
    lines = [
        json.dumps({"id": row["id"], "video": video, "caption": caption})
        for row, video, caption in zip(kept, videos, captions, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_list_of(run, folder), "".join(line + "\n" for line in lines).encode())


def _write_tokenizer(dataset: SyntheticDataset, config: TrainConfig, path: Path) -> None:
    """Write one tokenizer, of all training captions, for all runs: word losses of different vocabularies do not
    compare."""
    if not path.is_file():
        captions = [json.loads(line)["caption"] for line in dataset.train.read_text().splitlines()]
        path.parent.mkdir(parents=True, exist_ok=True)
        CaptionTokenizer.train(captions, vocab_size=config.data.vocab_size).save(path)


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
