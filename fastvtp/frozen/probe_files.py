"""Trained probes on disk: weights in model.safetensors; in probe.json what they mean and of which model they are."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvtp.data.reading import ClipReading
from fastvtp.errors import CheckpointError, UserError
from fastvtp.files import write_atomically
from fastvtp.frozen.adapters import ProbedTower, TowerTap
from fastvtp.frozen.features import model_digest
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.towers import VideoTower
from fastvtp.model_folder import WEIGHTS_NAME, build_config, load_weights, read_weights

PROBE_NAME = "probe.json"


@dataclass(frozen=True)
class ProbeDescription:
    """What a probe folder says beside the weights.

    config: the probe's. class_names, multi_label: what its outputs mean. model_digest: of the model whose features it
    reads. layers: blocks read beside the tower's output. pool: of the features, see `FeatureSettings`. adapter_dim:
    inner width of adapters; None: without. protocol: how its clips were read, with what `ClipReading.record` gives.
    """

    config: ProbeConfig
    class_names: tuple[str, ...]
    multi_label: bool
    model_digest: str
    layers: tuple[int, ...]
    pool: str
    adapter_dim: int | None
    protocol: dict[str, Any]

    @property
    def reading(self) -> ClipReading:
        """How the clips of the probe's training were read, as far as evaluation goes by it.

        Raises UserError where `protocol` says something that no reading has.
        """
        return ClipReading.of_record(self.protocol)


def save_probe(folder: str | Path, probed: nn.Module, description: ProbeDescription) -> None:
    """Write what was trained, a `Probe` or a `ProbedTower`, to `folder`, which is created."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # as parts of a ProbedTower, where they will be wanted
    prefix = "" if isinstance(probed, ProbedTower) else "probe."
    weights = {prefix + name: tensor.cpu().contiguous() for name, tensor in probed.state_dict().items()}
    write_atomically(folder / WEIGHTS_NAME, save(weights))
    write_atomically(folder / PROBE_NAME, (json.dumps(dataclasses.asdict(description), indent=2) + "\n").encode())


def read_probe_description(folder: str | Path) -> ProbeDescription:
    """Read the content of probe.json. Raises CheckpointError with one line."""
    path = Path(folder) / PROBE_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no probe: it has no {PROBE_NAME}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise CheckpointError(f"{path}: expected an object with the key 'config'")
    lists = {name: values.get(name) or [] for name in ("class_names", "layers")}
    description: ProbeDescription = build_config(ProbeDescription, {**values, **lists}, path)
    try:
        _ = description.reading
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: protocol: {error}") from None
    return description


def load_probe(folder: str | Path, tower: VideoTower) -> tuple[ProbedTower, ProbeDescription]:
    """Put a trained probe on its tower, in evaluation mode on the tower's device; returns also what its outputs mean.

    Raises UserError where the tower is not that of the probe's model, and CheckpointError for what cannot be read.
    """
    description = read_probe_description(folder)
    if (own := model_digest(tower.model)) != description.model_digest:
        raise UserError(f"{folder} was trained on a model of digest {description.model_digest}, this one is {own}")
    device = next(iter(tower.model.parameters())).device
    tap = TowerTap(description.layers, description.adapter_dim)
    probed = ProbedTower(tower, build_probe(description.config), tap, pool=description.pool)
    load_weights(probed, read_weights(Path(folder)), folder)
    return probed.to(device).eval(), description


def predictions(logits: torch.Tensor, description: ProbeDescription) -> list[dict[str, float]]:
    """Say what rows of logits, [B, C], mean: the probability of each class by its name, the likeliest first."""
    scores = logits.double().sigmoid() if description.multi_label else logits.double().softmax(-1)
    named = (dict(zip(description.class_names, row, strict=True)) for row in scores.tolist())
    return [dict(sorted(row.items(), key=lambda item: -item[1])) for row in named]
