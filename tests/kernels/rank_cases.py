"""What several processes compute with the contrastive losses, for the tests to compare with what one process does.

`run` starts PROCESSES processes once; those named by a case form its group and save what each of them finds.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
    try:
        LOSSES[loss](a.clone().requires_grad_(wants_gradient), a, *(1.0,) * (1 + (loss == "sigmoid_loss")), group=group)
    except ValueError as error:
        return str(error)
    return "nothing"


def _work(process: int, names: tuple[str, ...]) -> Result:
    groups: dict[str, Any] = {name: dist.new_group(list(ranks)) for name, ranks in GROUPS.items()}
    found: dict[str, Any] = {}
    with small_tiles():
        for name in names:
            case = CASES[name]
            ranks = GROUPS[case.group]
            if process in ranks:
                first = ROWS * ranks.index(process)
                inputs = {
                    key: x[first : first + ROWS] if isinstance(x, Tensor) and x.ndim else x
                    for key, x in case.inputs().items()
                }
                found[name] = case.run(inputs, group=groups[case.group], backend=case.backend)
        for loss in LOSSES:
            for name, ranks in GROUPS.items():
                if process in ranks:
                    first = ROWS * ranks.index(process)
                    model = DistributedDataParallel(Towers(loss), process_group=groups[name])
                    rows = slice(first, first + ROWS)
                    found[f"train {loss} {name}"] = train(loss, model, rows, ROWS * len(ranks), groups[name])
            found[f"uneven {loss}"] = [
                _error(loss, groups["4"], 2 + (process == 2), WIDTH),
                _error(loss, groups["4"], 2, WIDTH - (process == 0)),
                _error(loss, groups["4"], 2 * (process != 3), WIDTH),
                _error(loss, groups["4"], 0, WIDTH),
                _error(loss, groups["4"], 2, WIDTH, wants_gradient=process == 1),
            ]
    return found


def run(folder: Path, names: tuple[str, ...]) -> list[Result]:
    """What each process found, by the names of cases, "train <loss> <group>" and "uneven <loss>"."""
    return run_ranks(_work, folder, names, processes=PROCESSES)
