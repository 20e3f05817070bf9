"""How sharply ALPRO draws its wrong pairs."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import get_recipe

SIZES: dict[str, Any] = {
    "num_frames": 2,
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "text_depth": 1,
    "fusion_depth": 1,
    "text_num_heads": 2,
    "text_hidden": 16,
    "projection_dim": 16,
    "max_text_length": 12,
    "vocab_size": 200,
}
DRAWS = 200


def share_of_the_hardest(**settings) -> float:
    """Of the clips drawn for a text, how often it is the one most like it, among 11 wrong ones."""
    model = build_model(AlproRetrievalConfig(**SIZES, temperature=0.01, **settings))
    generator = torch.Generator().manual_seed(0)
    text, video = (normalize(torch.randn(12, 16, generator=generator), dim=1) for _ in range(2))
    hardest = (text @ video.T).fill_diagonal_(-2).argmax(1)
    hits = 0
    for step in range(DRAWS):
        clips, _ = model.draw_wrong(model.compared(text, video), torch.arange(12), seed=0, step=step)
        assert (clips != torch.arange(12)).all()
        hits += int((clips == hardest).sum())
    return hits / (12 * DRAWS)


def test_a_higher_temperature_draws_easier_pairs():
    assert share_of_the_hardest() > 0.9  # the contrast's own, 0.01
    assert share_of_the_hardest(negative_temperature=0.01) == share_of_the_hardest()
    assert 0.2 < share_of_the_hardest(negative_temperature=0.2) < 0.7
    assert share_of_the_hardest(negative_temperature=1e3) == pytest.approx(1 / 11, abs=0.03)


def test_a_temperature_that_is_none_is_one_line():
    with pytest.raises(ValueError, match="negative_temperature must be positive, or none, got 0"):
        AlproRetrievalConfig(**SIZES, negative_temperature=0)


def test_the_official_preset_draws_as_released():
    official, ours = (get_recipe("alpro_pretrain_tiny", preset).model for preset in ("official", "fastvtp"))
    assert (official.negative_temperature, official.word_mask_ratio) == (None, 0.15)
    assert ours.negative_temperature > ours.temperature
    assert get_recipe("alpro_pretrain").model.negative_temperature is None
