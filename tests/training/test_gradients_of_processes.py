"""A step on several processes (gloo, CPU) against the same step on one, which is that of one forward pass."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastvtp.modules.rest_of_step import AcrossProcesses, Precomputed
from fastvtp.training import gradients
from fastvtp.training.division import ParallelConfig
from tests.ranks import run_ranks
from tests.training.steps import CASES, Found, difference, in_micro_batches, largest_difference, make_batch, parts

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
NARROW = {"contrast_scope": "micro_batch", "matching_scope": "micro_batch"}


@dataclass(frozen=True)
class Step:
    """A step of a case in so many micro-batches, with dropout where the case has any. sharded: by FSDP2 too. least:
    processes from which on it is worth its time."""

    case: str
    micro_batches: int = 4
    dtype: torch.dtype = torch.float64
    settings: dict[str, Any] = field(default_factory=dict)
    sharded: bool = False
    least: int = 2


STEPS = {
    "random pairs": Step("simvtp", 8),
    "hard pairs": Step("simvtp_hard_learned", sharded=True),
    "hard pairs both ways": Step("alpro_paper", 8, sharded=True),
    "features and counts": Step("dual_encoder", sharded=True),
    "features alone": Step("prompter", least=4),
    "kept tokens": Step("videoprism", least=4),
    "counts alone": Step("captioner", 8),
    "counts alone, side by side": Step("captioner", least=4),
    "pairs of a micro-batch": Step("simvtp_hard", settings={"matching_scope": "micro_batch"}, least=4),
    "nothing but counts": Step("alpro_official", settings=NARROW, least=4),
    "float32": Step("simvtp_hard_learned", 8, torch.float32),
    "bfloat16": Step("dual_encoder", 4, torch.float32, {"precision": "bfloat16"}, least=4),
}
SHARDED = {name for name, step in STEPS.items() if step.sharded}


def take(name: str, strategy: str = "auto") -> Any:
    """Terms and gradients of a step on the processes that there are, and what its micro-batches were told by."""
    step, told = STEPS[name], []
    case = CASES[step.case]
    model, parallel = case.model(dtype=step.dtype, **case.dropout), ParallelConfig(strategy=strategy)
    batches = parts(make_batch(case), step.micro_batches, numbered=True)
    with pytest.MonkeyPatch.context() as patch:
        for kind in (AcrossProcesses, Precomputed):
            patch.setattr(
                gradients, kind.__name__, lambda *a, kind=kind, **k: told.append(kind.__name__) or kind(*a, **k)
            )
        found = in_micro_batches(case, model, batches, parallel=parallel, **step.settings)
    return found.terms, found.gradients, sorted(set(told))


def on_a_process(rank: int) -> dict[str, Any]:
    torch.manual_seed(rank)  # what a process drew before is its own
    names = [name for name, step in STEPS.items() if step.least <= dist.get_world_size()]
    found = {name: take(name) for name in names}
    return found | {f"{name}, sharded": take(name, "fsdp2") for name in names if name in SHARDED}


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    return {name: Found(*take(name)[:2]) for name in STEPS}


@pytest.mark.parametrize("processes", [2, 4])
def test_a_step_is_that_of_one_process(processes, alone, tmp_path):
    """Averaged over the processes, as data-parallel training has it, in either of the two ways that they may talk."""
    ways = set()
    for rank, found in enumerate(run_ranks(on_a_process, tmp_path, processes=processes)):
        for name, (terms, grads, told) in found.items():
            step, case = STEPS[name.removesuffix(", sharded")], (processes, rank, name)
            apart, expected = Found(terms, grads), alone[name.removesuffix(", sharded")]
            if step.dtype == torch.float64:
                assert largest_difference(apart, expected) < 1e-13, case
            elif step.settings:
                assert difference(apart, expected) < 1e-4, case  # of bfloat16's own rounding, 2^-9, nothing is left
            else:
                assert difference(apart, expected) < 1e-6, case
            pairs = "pairs" in name and "matching_scope" not in step.settings
            side_by_side = step.micro_batches == processes and not pairs
            assert told == ["AcrossProcesses" if side_by_side else "Precomputed"], case
            ways.add(told[0])
    assert ways == ({"AcrossProcesses", "Precomputed"} if processes == 4 else {"Precomputed"})


def test_processes_side_by_side_round_as_micro_batches_one_after_the_other(alone):
    """What autocast rounds is the same either way: what is compared and added up is float32."""
    exact = Found(*take_in_float32()[:2])
    assert 1e-4 < difference(alone["bfloat16"], exact) < 0.05


def take_in_float32() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STEPS, "exact", Step("dual_encoder", 4, torch.float32))
        return take("exact")
