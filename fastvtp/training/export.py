"""The final weights of a run as a model folder, of whole weights or of shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.architecture import architecture_of
from fastvtp.errors import UserError
from fastvtp.files import publish_folder
from fastvtp.model_folder import write_description, write_weights
from fastvtp.processes import first_decides, is_first
from fastvtp.training.state import TrainingState


def export_model(folder: Path, state: TrainingState, write_files_beside: Callable[[Path], None]) -> None:
    """Write all that evaluation needs to `folder`, which is there when it is complete: the weights, their average where
    there is one, config.json, and what `write_files_beside` adds (tokenizer, labels).

    All processes must call this; the first one writes. Shards are joined one tensor at a time, and kept by the first
    process alone, in the memory of its machine. Raises UserError, in one line, where the disk takes no more.
    """
    config: Any = state.model.config
    weights = _whole_weights(state)

    def write(partial: Path) -> None:
        write_weights(partial, weights)
        write_description(partial, config, architecture_of(config).name)
        write_files_beside(partial)

    def publish() -> None:
        try:
            publish_folder(folder, write)
        except OSError as error:
            raise UserError(f"{folder}: the model could not be written: {error}") from None

    first_decides(publish)


def _whole_weights(state: TrainingState) -> dict[str, Tensor]:
    """Return the final weights on the CPU of the first process, and nothing on the others. Weights that are whole and
    on the CPU already are not copied."""
    from torch.distributed.tensor import DTensor  # here, as it takes long to import

    average = {} if state.average is None else state.average.tensors
    found = {}
    for name, tensor in state.model.state_dict().items():
        kept = average.get(name, tensor)
        whole: Any = kept.full_tensor() if isinstance(kept, DTensor) else kept
        if is_first():
            found[name] = whole.detach().cpu()
    return found
