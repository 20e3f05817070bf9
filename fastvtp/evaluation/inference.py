"""Running a model for its results alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn


class Module(Protocol):
    """The part of `nn.Module` that is needed to switch a model to evaluation and back."""

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...


@contextmanager
def inference(model: Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients. Afterwards each module has its own train/eval flag back: one
    restored at the root alone would wake up what the caller had frozen."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
