import pytest
import torch

from fastvtp.data.loader import VideoTextBatch
from fastvtp.errors import UserError
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.pictures import predict_entities
from fastvtp.systems.alpro.towers import AlproConfig

ENTITIES = ["dog", "ball", "sea"]
SIZES = {
    "num_frames": 2, "image_size": 64, "patch_size": 8, "width": 32, "depth": 1, "num_heads": 2, "text_depth": 1,
    "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 64, "projection_dim": 16, "vocab_size": 50,
    "max_text_length": 12, "num_entities": 3, "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4),
}  # fmt: skip


def make(**overrides) -> Alpro:
    torch.manual_seed(0)
    model = Alpro(AlproConfig(**{**SIZES, **overrides}))
    model.init_weights()
    model.video_prompts.normal_()
    return model


@pytest.fixture
def batch() -> VideoTextBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (3, 2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    ends = torch.tensor([0, 4, 6, 11], dtype=torch.int32)
    ids = torch.randint(5, 50, (11,), generator=generator)
    return VideoTextBatch(video, ids, ends, (4, 2, 5), 5, torch.tensor([3, 0, 8]), ["a", "b", "c"], step=0)


def test_crop_and_probabilities_are_those_of_a_training_step(batch):
    model = make().train()
    examples = predict_entities(model, batch, ENTITIES, seed=5, top=2)
    assert model.training
    plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=5, step=0)
    logits = model.eval()(batch.video, plan).entity_logits
    for i, example in enumerate(examples):
        top, left, bottom, right = example.crop
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(inside, plan.crop[i].view(8, 8).repeat_interleave(8, 0).repeat_interleave(8, 1))
        values, places = logits[i].softmax(-1).topk(2)
        assert list(example.model) == [ENTITIES[place] for place in places.tolist()]
        assert list(example.model.values()) == pytest.approx(values.tolist(), rel=1e-4)
        assert (example.frame == batch.video[i, 1].numpy()).all()
        assert example.caption == batch.captions[i]


def test_the_prompter_sees_the_crop_alone(batch):
    model = make()
    first = predict_entities(model, batch, ENTITIES, seed=5, top=3)
    top, left, bottom, right = first[0].crop
    outside = batch.video[0].clone()
    outside[:, top:bottom, left:right] = 255 - outside[:, top:bottom, left:right]
    for changed, same in ((255 - outside, True), (outside, False)):
        batch.video[0] = changed
        second = predict_entities(model, batch, ENTITIES, seed=5, top=3)
        assert (second[0].prompter == pytest.approx(first[0].prompter, rel=1e-5)) == same
        assert second[1].prompter == pytest.approx(first[1].prompter, rel=1e-5)


def test_crops_that_teach_nothing_are_marked(batch):
    model = make(ignore_rule="paper")
    model.video_prompts[:] = model.video_prompts[0]  # an even third for each: above 0.2
    assert not any(example.ignored for example in predict_entities(model, batch, ENTITIES, seed=5))
    model = make(ignore_rule="official")
    model.video_prompts[1:] *= 0
    examples = predict_entities(model, batch, ENTITIES, seed=5)
    assert [example.ignored for example in examples] == [next(iter(e.prompter)) == "dog" for e in examples]


def test_what_does_not_fit(batch):
    with pytest.raises(UserError, match="trained without entities"):
        predict_entities(make(entity_weight=0.0), batch, ENTITIES, seed=0)
    with pytest.raises(ValueError, match="entities must be the model's 3, got 2"):
        predict_entities(make(), batch, ENTITIES[:2], seed=0)
