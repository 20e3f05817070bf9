"""What several processes compute with the contrastive ops, for the tests to compare with what one process does.

`run` starts PROCESSES processes once; those named by a case form its group and save what each of them finds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastvtp_kernels import BackendUnavailableError, hard_negatives
from fastvtp_kernels.contrastive import ranks
from tests.kernels.contrastive_cases import LOSSES, small_tiles
from tests.ranks import run_ranks

PROCESSES = 4
# Of the last two, one is no prefix of the world and one a process alone.
GROUPS = {"2": (0, 1), "3": (0, 1, 2), "4": (0, 1, 2, 3), "1 and 3": (1, 3), "1": (2,)}
ROWS, WIDTH, STEPS = 3, 5, 3
Result = dict[str, Any]


class Case(NamedTuple):
    """One call of a loss on the ranks of a group."""

    loss: str
    group: str = "3"
    positives: bool = False
    label_smoothing: float = 0.0
    wanted: tuple[str, ...] = ("a", "b", "logit_scale", "logit_bias")
    dtype: torch.dtype = torch.float32
    backend: str = "reference"
    compiled: bool = False
    strided: bool = False
    told: bool = False
    ring: bool = False

    def inputs(self) -> Result:
        """The whole batch and the scalars, without gradients."""
        rows = ROWS * len(GROUPS[self.group])
        generator = torch.Generator().manual_seed(5)
        a, b = (torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
        scale = 2.5
        if self.told:
            # Pairs told apart with ease: the loss is a small difference of large logits.
            scale, a = 100.0, nn.functional.normalize(2.4 + a, dim=1)
            b = nn.functional.normalize(a + 0.01 * b, dim=1)
        found: Result = {"a": a, "b": b, "logit_scale": torch.tensor(scale, dtype=torch.float64)}
        if self.loss == "sigmoid_loss":
            found["logit_bias"] = torch.tensor(-1.5, dtype=torch.float64)
        scalars = torch.float64 if self.dtype == torch.float64 else torch.float32
        found = {name: x.to(self.dtype if x.ndim else scalars) for name, x in found.items()}
        if self.loss == "contrastive_loss":
            # Equal ids within a rank and across ranks.
            found["positives"] = torch.arange(rows) * 3 % 5 if self.positives else None
            found["label_smoothing"] = self.label_smoothing
        return found

    def run(self, inputs: Result, **options: Any) -> Result:
        """The loss and, by name, the gradients that are wanted."""
        leaves = {
            name: (x.mT.contiguous().mT if self.strided and x.ndim else x.clone()).requires_grad_()
            for name in self.wanted
            if (x := inputs.get(name)) is not None
        }

        def call(given: Result) -> Tensor:
            return LOSSES[self.loss](**given, **options)

        if self.compiled:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        loss = call(inputs | leaves)
        if leaves:
            loss.backward()
        return {"loss": loss.detach()} | {name: x.grad for name, x in leaves.items()}


CASES = {
    f"{loss}, {group} processes{title}": Case(loss, group, **options)
    for group in GROUPS
    for loss, title, options in [
        ("contrastive_loss", "", {}),
        ("contrastive_loss", ", positives", {"positives": True}),
        ("contrastive_loss", ", positives, smoothed", {"positives": True, "label_smoothing": 0.1}),
        ("contrastive_loss", ", smoothed", {"label_smoothing": 0.3}),
        ("sigmoid_loss", "", {}),
    ]
}
for _loss in LOSSES:
    CASES |= {
        f"{_loss}, only {' and '.join(wanted) or 'the loss'}": Case(_loss, wanted=wanted)
        for wanted in [("a",), ("b",), ("logit_scale",), ("b", "logit_scale"), ()]
    }
    CASES[f"{_loss}, float64"] = Case(_loss, dtype=torch.float64)
    CASES[f"{_loss}, bfloat16"] = Case(_loss, dtype=torch.bfloat16)
    CASES[f"{_loss}, strided"] = Case(_loss, strided=True)
    CASES[f"{_loss}, compiled"] = Case(_loss, "2", compiled=True)
    CASES[f"{_loss}, Triton"] = Case(_loss, "2", backend="triton")
for _backend in ("reference", "triton"):
    CASES[f"contrastive_loss, told, {_backend}"] = Case("contrastive_loss", "2", told=True, backend=_backend)
CASES["contrastive_loss, Triton, positives, smoothed"] = Case(
    "contrastive_loss", "2", positives=True, label_smoothing=0.1, backend="triton"
)
# Once with all features gathered and once around the ring; a process alone has no such choice.
CASES |= {f"{name}, ring": case._replace(ring=True) for name, case in CASES.items() if case.group != "1"}

# With tiles of 16 rows, some tiles are of two ranks.
DRAWN_ROWS, SEED, STEP = 9, 2**63 + 9, 4


class Draws(NamedTuple):
    """One call of hard_negatives on the ranks of a group, which hold DRAWN_ROWS rows each."""

    group: str
    kind: str = "none"
    dtype: torch.dtype = torch.float32
    backend: str = "reference"
    compiled: bool = False
    strided: bool = False
    ids: torch.dtype = torch.int64

    def inputs(self) -> Result:
        """The whole batch. Groups: none, some of them on several ranks, one that is all of the second rank, or one."""
        rows = DRAWN_ROWS * len(GROUPS[self.group])
        generator = torch.Generator().manual_seed(6)
        a, b = (nn.functional.normalize(torch.randn(rows, 12, generator=generator)).to(self.dtype) for _ in range(2))
        place = torch.arange(rows)
        groups = {
            "none": None,
            "repeated": 7 * place % (rows // 2 + 1) - 2,
            "a rank's": torch.where(place // DRAWN_ROWS == 1, -1, place),
            "equal": 0 * place + 5,
        }[self.kind]
        return {"a": a, "b": b, "groups": None if groups is None else groups.to(self.ids)}

    def run(self, inputs: Result, **options: Any) -> Tensor:
        """Both directions' draws, int64 [2, B]."""
        if self.strided:
            inputs = inputs | {name: inputs[name].mT.contiguous().mT for name in "ab"}

        def call(given: Result) -> Tensor:
            return torch.stack(hard_negatives(**given, logit_scale=6.0, seed=SEED, step=STEP, **options))

        if self.compiled:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        return call(inputs)


DRAWS = {
    f"{group} processes, {kind}, {backend}, {dtype}": Draws(group, kind, dtype, backend)
    for group in ("2", "3")
    for kind, backend, dtype in [
        *((kind, "reference", torch.float32) for kind in ("none", "repeated", "a rank's", "equal")),
        ("repeated", "reference", torch.bfloat16),
        ("repeated", "triton", torch.float32),
        ("none", "triton", torch.bfloat16),
    ]
}
for _backend in ("reference", "triton"):
    DRAWS |= {
        f"compiled, {_backend}": Draws("2", "repeated", backend=_backend, compiled=True),
        f"strided, int32, {_backend}": Draws("2", "repeated", backend=_backend, strided=True, ids=torch.int32),
        f"a rank's, {_backend}": Draws("1 and 3", "a rank's", backend=_backend),
        f"a process alone, {_backend}": Draws("1", "repeated", backend=_backend),
    }


class Towers(nn.Module):
    """Two linear towers and a loss's scalars, the same on every call."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.left, self.right = nn.Linear(7, WIDTH), nn.Linear(6, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(-2.0)) if loss == "sigmoid_loss" else None

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a, b = (nn.functional.normalize(z, dim=1) for z in (self.left(x), self.right(y)))
        return a, b, self.log_scale.exp(), *([] if self.bias is None else [self.bias])


def train(loss: str, model: nn.Module, rows: slice, whole: int, group: dist.ProcessGroup | None) -> Result:
    """STEPS steps on these rows of batches of `whole` rows; the losses and the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    generator = torch.Generator().manual_seed(9)
    losses = []
    for _ in range(STEPS):
        x, y = (torch.randn(whole, width, generator=generator)[rows] for width in (7, 6))
        output = LOSSES[loss](*model(x, y), group=group)
        optimizer.zero_grad()
        output.backward()
        optimizer.step()
        losses.append(output.detach())
    weights = {name.removeprefix("module."): x.detach().clone() for name, x in model.named_parameters()}
    return {"losses": torch.stack(losses)} | weights


def _error(loss: str, group: dist.ProcessGroup, rows: int, width: int, wants_gradient: bool = False) -> str:
    """What the loss says to features of a shape, or to a wish for gradients, that is not every rank's."""
    a = torch.randn(rows, width)
    scalars = (1.0,) * (1 + (loss == "sigmoid_loss"))
    return _said(lambda: LOSSES[loss](a.clone().requires_grad_(wants_gradient), a, *scalars, group=group), ValueError)


def _own(inputs: Result, rows: int, place: int) -> Result:
    """The rank's rows of the whole batch."""
    part = slice(rows * place, rows * (place + 1))
    return {key: x[part] if isinstance(x, Tensor) and x.ndim else x for key, x in inputs.items()}


@contextmanager
def _route(ring: bool) -> Iterator[None]:
    with patch.object(ranks, "GATHERED_BYTES", 0 if ring else ranks.GATHERED_BYTES):
        yield


def _said(call: Callable[[], Any], *errors: type[Exception]) -> str:
    try:
        call()
    except errors as error:
        return str(error)
    return "nothing"


def _refused_draws(process: int, group: dist.ProcessGroup) -> list[str]:
    """What hard_negatives says to ranks that differ: in shape, rows, ids, their width, seed and step."""
    differs = process == 1
    ids = torch.zeros(2, dtype=torch.int64)
    calls: list[tuple[int, Result]] = [
        (2 + differs, {}),
        (0, {}),
        (2, {"groups": ids if differs else None}),
        (2, {"groups": ids.int() if differs else ids}),
        (2, {"seed": SEED + 2**32 * differs}),
        (2, {"step": int(differs)}),
        (2, {"backend": "specification"}),
    ]
    return [
        _said(
            lambda rows=rows, more=more: hard_negatives(
                torch.zeros(rows, 3), torch.zeros(rows, 3), 1.0, group=group, **{"seed": SEED, **more}
            ),
            ValueError,
            BackendUnavailableError,
        )
        for rows, more in calls
    ]


def _exchanges(group: dist.ProcessGroup, bound: int, loss: str) -> Result:
    """How often a loss with its gradients calls what there is to exchange tensors with; and the gradients, twice."""
    counts: dict[str, int] = {}

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return call(*args, **options)

        return counted

    case = Case(loss, "3")
    inputs = _own(case.inputs(), ROWS, dist.get_rank(group))
    with (
        patch.object(ranks, "GATHERED_BYTES", bound),
        patch.object(ranks, "_all_gather", counting("gather", ranks._all_gather)),
        patch.object(dist, "all_to_all_single", counting("exchange", dist.all_to_all_single)),
        patch.object(dist, "batch_isend_irecv", counting("hop", dist.batch_isend_irecv)),
    ):
        found = case.run(inputs, group=group)
        loss_alone = dict(counts)
        return {"counts": loss_alone, "first": found, "again": case.run(inputs, group=group)}


def _checks(group: dist.ProcessGroup) -> int:
    """How many times the ranks gather something to see that they are alike."""
    with patch.object(ranks, "_all_gather", side_effect=ranks._all_gather) as gathers:
        ranks.Ring(group.group_name).check_alike("op", torch.zeros(2, 3), (True, False), {"a number": 0.5})
    return gathers.call_count


def _work(process: int, names: tuple[str, ...]) -> Result:
    groups: dict[str, Any] = {name: dist.new_group(list(members)) for name, members in GROUPS.items()}
    found: dict[str, Any] = {}
    with small_tiles():
        for name in names:
            case = (CASES | DRAWS)[name]
            members = GROUPS[case.group]
            if process in members:
                rows = ROWS if isinstance(case, Case) else DRAWN_ROWS
                inputs = _own(case.inputs(), rows, members.index(process))
                with _route(isinstance(case, Case) and case.ring):
                    found[name] = case.run(inputs, group=groups[case.group], backend=case.backend)
        for loss in LOSSES:
            for name, members in GROUPS.items():
                if process in members:
                    first = ROWS * members.index(process)
                    model = DistributedDataParallel(Towers(loss), process_group=groups[name])
                    rows = slice(first, first + ROWS)
                    found[f"train {loss} {name}"] = train(loss, model, rows, ROWS * len(members), groups[name])
            found[f"uneven {loss}"] = [
                _error(loss, groups["4"], 2 + (process == 2), WIDTH),
                _error(loss, groups["4"], 2, WIDTH - (process == 0)),
                _error(loss, groups["4"], 2 * (process != 3), WIDTH),
                _error(loss, groups["4"], 0, WIDTH),
                _error(loss, groups["4"], 2, WIDTH, wants_gradient=process == 1),
            ]
            if process in GROUPS["3"]:
                whole = 3 * ROWS * WIDTH * 4
                found[f"exchanges {loss}"] = [_exchanges(groups["3"], bound, loss) for bound in (whole, whole - 1)]
        if process in GROUPS["2"]:
            found["refused draws"] = _refused_draws(process, groups["2"])
            found["checks"] = _checks(groups["2"])
    return found


def run(folder: Path, names: tuple[str, ...]) -> list[Result]:
    """What each process found, by the names of cases and of the other things that `_work` does."""
    return run_ranks(_work, folder, names, processes=PROCESSES)
