import os
from pathlib import Path

import pytest

# Two test processes share two cores: torch's own threads would only fight each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that asks for more has them wait for each other without spinning, while others have the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Without a GPU the kernels run in Triton's interpreter. Read when the first kernel is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def captioned_videos(tmp_path_factory) -> Path:
    """A folder with train.jsonl (20 clips) and test.jsonl (8 clips) of 64 pixels and 8 frames."""
    from fastvtp.data.synthetic import SyntheticConfig, generate_dataset

    root = tmp_path_factory.mktemp("captioned")
    config = SyntheticConfig(num_train=20, num_test=8, num_frames=8, height=64, width=64)
    generate_dataset(root, config, workers=1, progress=False)
    return root


def tiny_overrides(captioned_videos: Path, output_dir: Path) -> list[str]:
    """Overrides that shrink a recipe to a second's work."""
    return [
        f"data.train={captioned_videos / 'train.jsonl'}",
        f"data.test={captioned_videos / 'test.jsonl'}",
        f"output_dir={output_dir}",
        "device=cpu", "data.num_workers=0", "data.vocab_size=300", "tensorboard=false",
        "model.width=48", "model.depth=1", "model.num_heads=2", "model.decoder_width=24", "model.decoder_num_heads=2",
        "model.image_size=32", "model.num_frames=4", "model.tubelet=2,8,8",
        "batch_size=4", "steps=6", "log_every=1", "checkpoint_every=2",
    ]  # fmt: skip


@pytest.fixture
def tiny_settings(captioned_videos, tmp_path) -> list[str]:
    return tiny_overrides(captioned_videos, tmp_path / "run")
