"""Every tiny recipe on one, two and four processes (gloo, CPU), by DDP and FSDP2: the numbers are those of one."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from fastvtp.training.loop import train
from fastvtp.training.stopping import StopSignals
from tests.ranks import run_ranks
from tests.training.tiny_runs import RUNS, prepare

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
# Sums of gradients are in another order with every number of processes. In float32 that shows as this much of a loss,
# of a norm of gradients, and of the largest weight of a tensor; AdamW, which divides by the gradients' size, and steps
# on steps make it grow.
LOSSES, NORMS, WEIGHTS = 1e-6, 2e-5, 2e-5
# Over twelve steps, or in the sums of four processes, single entries of a bias whose gradient is hardly more than
# rounding come to differ by more. In float64 gradients agree to 1e-13, see test_gradients_of_processes.py.
WEIGHTS_OF_MANY = 1e-3
# Their gradient is 0 but for rounding, since a softmax does not see them, and AdamW makes steps of that: what all keys
# of an attention have in common, and what all options of a question have.
UNSEEN = {"choices": ("encoder.norm.bias", "head.1.bias")}
# Whole runs, from step 4 on the same on all: a matching by hard negatives with an average, several sets with pictures,
# dropout with mixup, and entities.
RESUMED = ("simvtp-hard", "prism-1", "classes", "alpro")


def train_all(rank: int, root: str, output: str, names: tuple[str, ...], more: tuple[str, ...], stop: int = 0) -> None:
    """Train, from the newest checkpoint where there is one; stop: after this many steps, as a scheduler would."""
    for name in names:
        config = RUNS[name].config(Path(root), Path(output) / name, *more)
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                asked = iter([None] * stop)  # before the first step, and after each but the last
                patch.setattr(StopSignals, "asked", lambda _, asked=asked: next(asked, "SIGTERM"))
            result = train(config, resume=True, progress_bar=False)
        assert result.stopped_by == ("SIGTERM" if stop else None)
        assert not any(weight.is_meta for weight in result.model.parameters())


def records_of(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def differences(name: str, first: Path, second: Path) -> tuple[float, float, float]:
    """The largest relative differences of two runs: of all losses, of the norms of gradients, of the final weights."""
    losses, norms = [0.0], [0.0]
    for one, other in zip(records_of(first / name), records_of(second / name), strict=True):
        assert one.keys() == other.keys()
        for term, value in one.items():
            if "accuracy" in term or "ignored" in term:  # shares of few: a tie may tip
                continue
            found = abs(value - other[term]) / max(abs(value), 1e-2)
            (norms if term == "grad_norm" else losses).append(found)
    weights, others = (load_file(folder / name / "model/model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    found = [0.0]
    for key, weight in weights.items():
        if key in UNSEEN.get(name, ()) or key.endswith("key.bias") or not weight.numel():
            continue
        apart = (weight - others[key]).abs()
        if key.endswith("qkv.bias"):
            apart[len(weight) // 3 : 2 * len(weight) // 3] = 0
        found.append(float(apart.max() / weight.abs().max().clamp(min=1e-2)))
    return max(losses), max(norms), max(found)


def compare(first: Path, second: Path, names: tuple[str, ...] = tuple(RUNS), most: float = WEIGHTS) -> None:
    found = {name: differences(name, first, second) for name in names}
    said = "".join(f"\n{name}: losses {a:.1e}, norms {b:.1e}, weights {c:.1e}" for name, (a, b, c) in found.items())
    print(said)
    for losses, norms, weights in found.values():
        assert losses <= LOSSES, said
        assert norms <= NORMS, said
        assert weights <= most, said


@pytest.fixture(scope="module")
def data(captioned_videos) -> Path:
    return prepare(captioned_videos)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The runs of one process: three steps."""
    output = tmp_path_factory.mktemp("alone")
    train_all(0, str(data), str(output), tuple(RUNS), ("steps=3",))
    return output


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (2, "fsdp2")])
def test_every_recipe_computes_what_one_process_does(processes, strategy, data, alone, tmp_path):
    more = ("steps=3", f"parallel.strategy={strategy}")
    output = tmp_path / "runs"
    run_ranks(train_all, tmp_path, str(data), str(output), tuple(RUNS), more, processes=processes, seconds=900)
    compare(alone, output)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp parallel.shard_size=2"])
def test_four_processes_have_a_micro_batch_each(strategy, data, alone, tmp_path):
    names = ("simvtp-hard", "prompter", "alpro", "videomae")
    more = ("steps=3", *f"parallel.strategy={strategy}".split())
    output = tmp_path / "runs"
    run_ranks(train_all, tmp_path, str(data), str(output), names, more, processes=4, seconds=900)
    compare(alone, output, names, most=WEIGHTS_OF_MANY)


def test_a_run_goes_on_with_other_processes(data, tmp_path):
    """Two processes, one, then two that share the weights, within an epoch; and whoever stops is gone on from."""
    more = ("steps=6", "checkpoint_every=100")
    whole, output = tmp_path / "whole", tmp_path / "runs"
    train_all(0, str(data), str(whole), RESUMED, more)
    for place, (processes, strategy, stop) in enumerate(((2, "ddp", 2), (1, "none", 2), (2, "fsdp2", 0))):
        (folder := tmp_path / str(place)).mkdir()
        shared = (str(data), str(output), RESUMED, (*more, f"parallel.strategy={strategy}"), stop)
        if processes == 1:
            train_all(0, *shared)
        else:
            run_ranks(train_all, folder, *shared, processes=processes, seconds=900)
    compare(whole, output, RESUMED)


def test_the_same_processes_compute_the_same_bits(data, tmp_path):
    names = ("simvtp-hard", "alpro")
    for place in "ab":
        (tmp_path / place).mkdir()
        more = ("steps=2", "parallel.strategy=fsdp2")
        run_ranks(train_all, tmp_path / place, str(data), str(tmp_path / place / "runs"), names, more, processes=2)
    for name in names:
        first, second = (tmp_path / place / "runs" / name for place in "ab")
        assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
        assert (first / "model/model.safetensors").read_bytes() == (second / "model/model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "strategy"),
    [(1, "fsdp2"), (2, "ddp"), (2, "fsdp2"), (4, "ddp"), (4, "fsdp2"), (4, "hsdp parallel.shard_size=2")],
)
def test_twelve_steps_of_every_recipe(processes, strategy, data, tmp_path_factory, tmp_path):
    more = ("steps=12",)
    whole = tmp_path_factory.getbasetemp() / "twelve"
    if not whole.exists():
        train_all(0, str(data), str(whole), tuple(RUNS), more)
    more += tuple(f"parallel.strategy={strategy}".split())
    output = tmp_path / "runs"
    run_ranks(train_all, tmp_path, str(data), str(output), tuple(RUNS), more, processes=processes, seconds=3600)
    compare(whole, output, most=WEIGHTS_OF_MANY)


@pytest.mark.long
def test_twelve_steps_by_two_one_and_four_processes(data, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "runs"
    train_all(0, str(data), str(whole), tuple(RUNS), ("steps=12",))
    for place, (processes, strategy, stop) in enumerate(((2, "fsdp2", 4), (1, "none", 4), (4, "ddp", 0))):
        (folder := tmp_path / str(place)).mkdir()
        shared = (str(data), str(output), tuple(RUNS), ("steps=12", f"parallel.strategy={strategy}"), stop)
        run_ranks(train_all, folder, *shared, processes=processes, seconds=3600)
    compare(whole, output, most=WEIGHTS_OF_MANY)
