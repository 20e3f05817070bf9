"""Gradients of VideoPrism's models, in the released names and layouts."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastvtp.errors import UserError
from fastvtp.systems.videoprism.weights import prepare
from tests.parity.compare import Row
from tests.parity.systems.prism_folder import (
    GRADIENTS,
    TOKENS,
    Part,
    rows_of,
)

Outputs = Callable[[nn.Module, str, Tensor | None], Mapping[str, Tensor]]

_COTANGENT = "cotangent/"
_BIAS = re.compile(r"(.*attention)/(query|key|value)/b$")
_JOINT = "by the norm of queries', keys' and values' biases, one vector here: keys' hardly matter"


class _Within(nn.Module):
    """A model under a name, so that any of its methods can be called with other weights."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[nn.Module], Tensor]) -> Tensor:
        return run(self.model)


def rows(model: nn.Module, part: Part, outputs: Outputs) -> list[Row]:
    """A row for the loss and each gradient. outputs: what a model gives in a case, by name, for a clip or none."""
    expected = {name: array for name, array in part.gradients.items() if not name.startswith(_COTANGENT)}
    actual = gradients(model, part, outputs)
    scales, notes = {}, {}
    for name in expected:
        if found := _BIAS.fullmatch(name):
            joint = [expected.get(f"{found[1]}/{which}/b") for which in ("query", "key", "value")]
            scales[name] = torch.cat([bias.flatten() for bias in joint if bias is not None]).norm().item()
            notes[name] = _JOINT
    return rows_of(f"grads/{part.path.name}", actual, expected, {"loss": TOKENS, "": GRADIENTS}, notes, scales)


def gradients(model: nn.Module, part: Part, outputs: Outputs) -> dict[str, Tensor]:
    """Of the sum of outputs times their cotangents, in the first case whose outputs have the cotangents' shapes."""
    cotangents = {
        name.removeprefix(_COTANGENT): array for name, array in part.gradients.items() if name.startswith(_COTANGENT)
    }
    weights = {name: weight.clone().requires_grad_() for name, weight in part.weights.items()}
    state = {f"model.{name}": weight for name, weight in prepare(weights).items()}
    for case in part.cases("inputs", "text_token_ids"):
        video = part.given(case, "inputs").clone().requires_grad_() if part.cases("inputs") else None
        seen: dict[str, Tensor] = {}

        def loss(known: nn.Module, case: str = case, video: Tensor | None = video, seen: dict = seen) -> Tensor:
            seen |= outputs(known, case, video)
            return torch.stack([(seen[name] * value).sum() for name, value in cotangents.items()]).sum()

        with torch.no_grad():
            shapes = {name: array.shape for name, array in outputs(model, case, video).items()}
        if all(shapes.get(name) == value.shape for name, value in cotangents.items()):
            total = functional_call(_Within(model), state, (loss,))
            total.backward()
            found = {f"grad/{name}": weight.grad for name, weight in weights.items()}
            found |= {"grad_inputs": None if video is None else video.grad}
            zeros = {f"grad/{name}": torch.zeros_like(weight) for name, weight in weights.items()}
            return zeros | {"loss": total.detach()[None]} | {n: g for n, g in found.items() if g is not None}
    raise UserError(f"{part.path}: no case has outputs {', '.join(cotangents)} of the shapes of their cotangents")
