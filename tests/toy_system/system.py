"""What fastvtp is told of the toy: `fastvtp.register(SYSTEM)` is all that it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastvtp.architecture import Architecture, NamedModel, Runs, System, model_config
from fastvtp.checkpoints.kinds import Kind, Shapes, Transfer, own_kinds
from fastvtp.checkpoints.names import NameMap
from fastvtp.data.loader import VideoTextBatch
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.training.config import OptimizerConfig, TrainConfig
from fastvtp.training.data_config import DataConfig
from fastvtp.training.task import CaptionedTask, Loss
from tests.toy_system.model import Toy, ToyConfig

# --- Training


@dataclass(frozen=True)
class ToyOptions:
    """Settings of this task alone, set as `brightness=0.5`."""

    brightness: float = 1.0
    """Factor on the pixels of training clips."""


class PretrainToy(CaptionedTask):
    """The contrast of clips with their captions."""

    name = "pretrain_toy"
    model_config = ToyConfig
    options = ToyOptions
    contrasts = True

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected:
        batch = batch.to(model.device, non_blocking=True)
        return model.collect(self._bright(batch), batch.input_ids, batch.cu_seqlens)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        batch = batch.to(model.device, non_blocking=True)
        loss = compute(self._bright(batch), batch.input_ids, batch.cu_seqlens, batch.sample_ids, rest)
        return loss, {"loss/contrastive": loss.detach()}

    def _bright(self, batch: VideoTextBatch) -> Tensor:
        return batch.video.float() * self.config.options.brightness


def toy_tiny(preset: str = "fastvtp") -> TrainConfig:
    """A second of one CPU core."""
    return TrainConfig(
        task="pretrain_toy",
        model=model_config("toy_tiny", preset=preset),
        data=DataConfig(train="data/train.jsonl"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        output_dir="runs/toy_tiny",
        steps=4,
    )


# --- Checkpoints

# as the weights of the toy were published, under other names
_NAMES = NameMap(((r"vision\.proj\.", "video_projection."), (r"words\.", "word_embeddings.")))


def _sizes(shapes: Shapes, _: str, __: Mapping[str, Any]) -> dict[str, Any]:
    vocab_size, width = shapes["word_embeddings.weight"]
    return {"vocab_size": vocab_size, "width": width}


KINDS = (
    *own_kinds(_sizes, {"toy": ("video_projection.", "word_embeddings.")}),
    Kind(origin="toy", architecture="toy", marks=("vision.proj.", "words."), names=_NAMES, sizes=_sizes),
)

# --- All together

SYSTEM = System(
    name="toy",
    architectures=(
        Architecture(
            name="toy",
            config=ToyConfig,
            model=Toy,
            reads_text=True,
            scored_by="retrieval",
            has_embeddings=True,
            sources={"toy": Transfer()},
        ),
    ),
    models={"toy_tiny": NamedModel("toy", {"width": 8}), "toy_base": NamedModel("toy", recommended={"width": 64})},
    kinds=KINDS,
    runs=lambda: Runs(tasks=(PretrainToy,), recipes=(toy_tiny,)),
)
