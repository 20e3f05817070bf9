"""Captions of clips that were held out are right, and those of the language model alone are not.

The backbone is a small VideoPrism of random weights, which knows colours as any random projection does; the language
model has read the captions and seen no clip. The real figure is that of `videoprism_captioning_tiny`.
"""

import pytest
import torch

from fastvtp.systems.captioner.language_model import LanguageModel
from fastvtp.systems.captioner.model import VideoCaptioner, VideoCaptionerConfig
from fastvtp.systems.captioner.scores import caption_without_clip, score_captions
from fastvtp.systems.catalogue import build_model
from tests.frozen.towers import make_tower_model

COLOURS = {
    "red": (220, 40, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "white": (240, 240, 240),
    "yellow": (230, 220, 40), "purple": (150, 30, 180),
}  # fmt: skip
PLACES = ("above", "below")
CAPTIONS = [f"a {colour} light shines {place}" for colour in COLOURS for place in PLACES]


def make_clips(count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """A colour in one half of the picture, in noise: uint8 [count, 4, 32, 32, 3], and the captions."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(CAPTIONS), (count,), generator=generator)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    lit = (torch.arange(32) >= 16) == (chosen % 2 == 1)[:, None]  # [count, 32]
    pixels = lit[:, None, :, None, None] * palette[chosen // 2][:, None, None, None]
    noise = 25 * torch.randn(count, 4, 32, 32, 3, generator=generator)
    return (pixels + noise).clamp(0, 255).byte(), [CAPTIONS[number] for number in chosen.tolist()]


def learn(captioner: VideoCaptioner, features: torch.Tensor, captions: list[str], steps: int) -> None:
    """Only what the captioner calls its parameters changes."""
    optimizer = torch.optim.AdamW(captioner.parameters(), 4e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        rows = torch.randint(len(captions), (32,))
        captioner(features[rows], captioner.texts([captions[row] for row in rows])).loss.backward()
        torch.nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A captioner after seconds of training, its held-out clips and their captions."""
    pytest.importorskip("transformers")
    from fastvtp.systems.captioner.toy import ToyConfig, train_toy_language_model

    clips, captions = make_clips(256, seed=0)
    folder = tmp_path_factory.mktemp("language")
    config = ToyConfig(steps=200, width=64, vocab_size=300, learning_rate=4e-3)
    train_toy_language_model(captions, folder, config, progress=False)
    torch.manual_seed(0)
    captioner = build_model(
        VideoCaptionerConfig(
            feature_width=32, language_width=64, num_queries=8, num_heads=4, num_frames=4, image_size=32
        )
    )
    backbone, language = make_tower_model("videoprism"), LanguageModel.load(folder)
    frozen = {
        name: value.clone() for name, value in (*backbone.state_dict().items(), *language.model.state_dict().items())
    }
    captioner.attach(backbone=backbone, language=language)
    with torch.no_grad():
        features = backbone(clips)
    learn(captioner, features, captions, steps=250)
    for name, value in (*backbone.state_dict().items(), *language.model.state_dict().items()):
        assert torch.equal(value, frozen[name]), name
    return captioner.eval(), *make_clips(64, seed=1)


def test_captions_of_new_clips_are_right(learned):
    captioner, clips, captions = learned
    references = [(caption,) for caption in captions]
    score = score_captions(captioner.caption(clips), references)
    alone = caption_without_clip(captioner)
    assert alone is not None
    prior = score_captions([alone] * len(captions), references)
    shuffled = score_captions(captioner.caption(clips.roll(1, 0)), references)
    print(f"right {score}, without clips {prior}, of other clips {shuffled}")
    assert score.exact > 80
    assert prior.exact < 20 > shuffled.exact
    assert score.overlap > prior.overlap + 10


def test_candidates_are_ranked_by_what_is_seen(learned):
    captioner, clips, captions = learned
    found = captioner.rank(clips, [""] * len(clips), [CAPTIONS] * len(clips))
    right = [CAPTIONS[int(row.argmax())] == caption for row, caption in zip(found, captions, strict=True)]
    (row,) = captioner.language.log_likelihoods(None, [""], [CAPTIONS])
    unseeing = [CAPTIONS[int(row.argmax())] == caption for caption in captions]
    assert sum(right) > 0.8 * len(right)
    assert sum(unseeing) < 0.2 * len(unseeing)
