"""A generator of captioned clips whose content is known exactly, for tests, demonstrations and learning curves."""

from fastvtp.data.synthetic.config import SyntheticConfig, SyntheticDataset
from fastvtp.data.synthetic.writer import generate_dataset

__all__ = ["SyntheticConfig", "SyntheticDataset", "generate_dataset"]
