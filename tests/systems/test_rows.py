"""How many rows the blocks of each model are said to read, against what they do read in a step."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvtp.architecture import architecture_of, build_model
from fastvtp.systems.recipes import get_recipe

CLIPS, WORDS = 3, 6
LENGTHS = (WORDS,) * CLIPS
DEPTHS = ("depth", "decoder_depth", "text_depth", "fusion_depth", "temporal_depth", "auxiliary_depth")
IDS = torch.arange(CLIPS)
KEY: dict[str, Any] = {"seed": 1, "step": 2}

Run = Callable[[Any, Tensor], Any]


def texts() -> tuple[Tensor, Tensor, int]:
    """Ids, offsets and the longest of the captions."""
    ids = torch.randint(150, 250, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    return ids, torch.tensor([0, *LENGTHS]).cumsum(0).int(), max(LENGTHS)


def planned(model: Any, video: Tensor) -> Any:
    return model(video, model.plan(texts()[0], LENGTHS, IDS, **KEY))


def prompted(model: Any, video: Tensor) -> Any:
    for prompts in (model.video_prompts, model.image_prompts):
        nn.init.normal_(prompts)
    return planned(model, video)


def asked(model: Any, video: Tensor) -> Any:
    return model(video, model.plan(texts()[0], LENGTHS, range(CLIPS)))


def masked(model: Any, video: Tensor) -> Any:
    return model(video, model.plan(IDS, **KEY))


def whole(model: Any, video: Tensor) -> Any:
    return model(video, *texts(), sample_ids=IDS)


def dropped(model: Any, video: Tensor) -> Any:
    return model(video, *texts(), sample_ids=IDS, visible=model.plan(video, IDS, **KEY))


def alone(model: Any, video: Tensor) -> Any:
    return model(video)


def calls_of(model: nn.Module) -> dict[str, int]:
    """Rows that the middle block of each list has been given with a gradient, filled as the model runs."""
    seen: dict[str, int] = {}
    for path, members in model.named_modules():
        if isinstance(members, nn.ModuleList):
            assert len(members) == 3, "a block between the first and the last, which may read other rows"

            def count(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, path: str = path) -> None:
                if output.requires_grad:
                    seen[path] = seen.get(path, 0) + inputs[0].shape[:-1].numel()

            members[1].register_forward_hook(count)
    return seen


@pytest.mark.parametrize(
    ("recipe", "run", "settings"),
    [
        ("simvtp_tiny", planned, {"pad_text": False}),
        ("simvtp_tiny", planned, {"matching_negatives": "random", "prediction": "running_cell"}),
        ("retrieval_finetune_tiny", whole, {"pad_text": False}),
        ("retrieval_finetune_tiny", whole, {"pad_text": False, "shared_encoder": True}),
        ("qa_finetune_tiny", asked, {}),
        ("videomae_pretrain_tiny", masked, {}),
        ("videomae_pretrain_tiny", masked, {"decoder": "cross", "prediction": "random", "prediction_ratio": 0.25}),
        ("classification_finetune_tiny", alone, {}),
        ("alpro_prompter_tiny", whole, {}),
        ("alpro_pretrain_tiny", prompted, {}),
        ("alpro_pretrain_tiny", planned, {"word_weight": 0.0, "entity_weight": 0.0}),
        ("alpro_retrieval_tiny", planned, {}),
        ("alpro_qa_tiny", asked, {}),
        ("videoprism_stage1_tiny", dropped, {}),
        ("videoprism_stage1_tiny", dropped, {"frozen_video": True}),
        ("videoprism_stage2_tiny", masked, {}),
        ("videoprism_stage2_tiny", masked, {"mask": "tube", "global_weight": 0.0}),
        ("videoprism_classification_tiny", alone, {}),
    ],
)
def test_rows_are_those_that_the_blocks_read(recipe: str, run: Run, settings: Mapping[str, Any]):
    config = get_recipe(recipe).model
    own = {entry.name for entry in fields(config)}
    depths = {name: 3 for name in DEPTHS if name in own}
    config = replace(config, **depths, **({"vocab_size": 300} if "vocab_size" in own else {}), **settings)
    model = build_model(config).train()
    seen = calls_of(model)
    run(model, torch.zeros(CLIPS, config.num_frames, config.image_size, config.image_size, 3, dtype=torch.uint8))
    told = architecture_of(config).rows
    assert told is not None
    assert {path: CLIPS * rows for path, rows in told(config, WORDS).items()} == pytest.approx(seen)
