from contextlib import nullcontext

import numpy as np
import pytest
import torch

from fastvtp.errors import UserError
from fastvtp.modules.bounds import clamp_parameters
from fastvtp.modules.packing import Packing, pair_sequences
from fastvtp.systems.alpro.finetuning import (
    AlproQA,
    AlproQAConfig,
    AlproRetrieval,
    AlproRetrievalConfig,
)
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.towers import AlproConfig

LENGTHS = (6, 4, 9)
SIZES = {
    "num_frames": 2,
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 1,
    "num_heads": 2,
    "drop_path": 0.0,
    "text_depth": 1,
    "fusion_depth": 1,
    "text_num_heads": 2,
    "text_hidden": 64,
    "projection_dim": 16,
    "vocab_size": 50,
    "max_text_length": 12,
    "text_dropout": 0.0,
    "num_entities": 5,
    "word_mask_ratio": 0.5,
    "mask_token_id": 4,
    "special_token_ids": (0, 1, 2, 3, 4),
}


def make(cls=Alpro, config_class=AlproConfig, **overrides):
    torch.manual_seed(0)
    model = cls(config_class(**{**SIZES, **overrides}))
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if cls is Alpro:
            model.video_prompts.normal_()
            model.image_prompts.normal_()
    return model.eval()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (3, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return video, torch.randint(5, 50, (sum(LENGTHS),), generator=generator)


def test_one_fusion_call_equals_one_call_per_pair():
    model = make()
    video, ids = make_batch()
    plan = model.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)
    negatives = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    output = model(video, plan, negatives=negatives)

    clips = model.video_tokens(video)
    texts = [
        model.text_tokens(text, torch.arange(len(text)), Packing.uniform(1, len(text)))
        for text in plan.text_ids.split([*LENGTHS, *LENGTHS])
    ]

    def fused(text: int, clip: int) -> torch.Tensor:
        pair = torch.cat([texts[text], clips[clip]])
        return model.fusion_encoder(pair, Packing.uniform(1, len(pair)))

    pairs = [(i, i) for i in range(3)] + [(i, (i + 1) % 3) for i in range(3)] + [((j + 2) % 3, j) for j in range(3)]
    expected = torch.stack([model.match_head(fused(*pair)[0]) for pair in pairs])
    torch.testing.assert_close(output.match_logits, expected, rtol=1e-4, atol=1e-5)
    assert output.match_labels.tolist() == [1] * 3 + [0] * 6

    masked = slice(len(plan.pair_rows.pair) - len(plan.word_labels), None)
    places = zip(plan.pair_rows.pair[masked] - 9, plan.pair_rows.position[masked], strict=True)
    words = [fused(3 + caption, caption)[place] for caption, place in places]
    logits = model.word_transform(torch.stack(words)) @ model.text_embeddings.word_embeddings.weight.T
    loss = torch.nn.functional.cross_entropy(logits + model.word_transform.bias, plan.word_labels)
    assert output.terms["loss/word"].item() == pytest.approx(loss.item(), rel=1e-4)

    inside = [fused(i, i)[LENGTHS[i] + 1 :][plan.crop[i]].mean(0) for i in range(3)]
    torch.testing.assert_close(output.entity_logits, model.entity_head(torch.stack(inside)), rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_but_the_prompters():
    model = make().train()
    video, ids = make_batch()
    before = {name: value.clone() for name, value in model.prompter.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    first = None
    for step in range(20):
        output = model(video, model.plan(ids, LENGTHS, torch.arange(3), seed=1, step=0))
        first = first or output.loss.item()
        output.loss.backward()
        if step == 0:
            missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert missing == ["text_embeddings.token_type_embeddings.weight"][:0]
            assert all(p.grad is None for p in model.prompter.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert output.loss.item() < 0.7 * first
    assert not model.prompter.training
    for name, value in model.prompter.state_dict().items():
        assert torch.equal(value, before[name])


def test_stages_that_are_switched_off_cost_nothing():
    model = make(word_weight=0.0, entity_weight=0.0)
    video, ids = make_batch()
    plan = model.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)
    assert len(plan.text_ids) == len(ids)
    output = model(video, plan)
    assert set(output.terms) == {"loss/contrastive", "loss/matching", "matching_accuracy", "temperature"}
    assert output.entity_logits is None


def test_captions_without_masked_words():
    """Their pairs want no row; where no word is masked at all, the other losses are what they were."""
    model = make()
    video, ids = make_batch()
    plan = model.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)
    hidden = torch.zeros(len(ids), dtype=torch.bool)
    found = []
    for words in (0, 2):
        hidden[:words] = True  # in the first caption
        bare = model.lay_out(
            input_ids=ids,
            masked_ids=ids,
            hidden=hidden,
            lengths=np.array(LENGTHS),
            sample_ids=plan.sample_ids,
            crop=plan.crop,
            seed=1,
            step=2,
        )
        assert (bare.pair_rows.pair >= 9).sum() == words
        found.append(model(video, bare))
    assert found[0].terms["loss/word"] == 0 < found[1].terms["loss/word"]
    for output in found:
        output.loss.backward()
        torch.testing.assert_close(output.entity_logits, model(video, plan).entity_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.match_logits, model(video, plan).match_logits, rtol=1e-4, atol=1e-5)


def test_hard_negatives_are_never_the_clip_itself():
    model = make()
    video, ids = make_batch()
    for sample_ids, expected in ((torch.arange(3), 0), (torch.tensor([7, 7, 7]), 6)):
        plan = model.plan(ids, LENGTHS, sample_ids, seed=1, step=2)
        output = model(video, plan)
        assert (output.match_labels == -100).sum() == expected
        assert output.loss.isfinite()


def test_the_temperature_is_bounded_and_its_gradient_is_not():
    model = make()
    with torch.no_grad():
        model.temperature.fill_(0.9)
    video, ids = make_batch()
    model(video, model.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)).loss.backward()
    assert model.temperature.grad != 0
    clamp_parameters(model)
    assert model.temperature.item() == 0.5  # from where the next step goes on
    model.temperature.grad = None
    scale = model.logit_scale()
    assert scale.item() == pytest.approx(2.0)
    scale.backward()
    assert model.temperature.grad.item() == pytest.approx(-4.0)
    for wrong in (0.0009, 0.51):
        with pytest.raises(ValueError, match=f"temperature must be from 0.001 to 0.5, got {wrong}"):
            AlproConfig(**SIZES, temperature=wrong)


def test_texts_that_are_too_long_are_one_line():
    ids, lengths = torch.full((20,), 7), (7, 13)
    expected = "a text has 13 tokens, the model takes 12"
    for model, clips in (
        (make(), {"sample_ids": torch.arange(2), "seed": 1, "step": 2}),
        (make(AlproRetrieval, AlproRetrievalConfig), {"sample_ids": torch.arange(2), "seed": 1, "step": 2}),
        (make(AlproQA, AlproQAConfig), {"video_of_text": [0, 1]}),
    ):
        with pytest.raises(ValueError, match=expected):
            model.plan(ids, lengths, **clips)
        with pytest.raises(ValueError, match=expected):
            model.embed_text(ids, torch.tensor([0, 7, 20], dtype=torch.int32), 13)


def test_prompts_are_of_a_known_kind_and_set():
    model = make()
    video, ids = make_batch()
    plan = model.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)
    assert not torch.equal(
        model(video, plan).terms["loss/entity"], model(video, plan, kind="image").terms["loss/entity"]
    )
    with pytest.raises(UserError, match="no kind of prompts 'images'; did you mean 'image'"):
        model(video, plan, kind="images")
    for unset, silent in ((make(), False), (make(entity_weight=0.0), True)):
        unset.video_prompts.zero_()
        unset.image_prompts.zero_()
        with (
            nullcontext() if silent else pytest.raises(UserError, match="video_prompts and image_prompts are all zero")
        ):
            unset.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)


def test_retrieval_is_the_contrast_and_matching_of_pretraining():
    model, pretrained = make(AlproRetrieval, AlproRetrievalConfig), make(word_weight=0.0, entity_weight=0.0)
    model.load_state_dict(pretrained.state_dict(), strict=False)
    video, ids = make_batch()
    outputs = [each(video, each.plan(ids, LENGTHS, torch.arange(3), seed=1, step=2)) for each in (model, pretrained)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert outputs[0].terms.keys() == outputs[1].terms.keys()
    with pytest.raises(ValueError, match=r"input_ids must be a CPU tensor of 19 tokens .*, got 18 on cpu"):
        model.plan(ids[1:], LENGTHS, torch.arange(3), seed=1, step=2)
    with pytest.raises(ValueError, match="word_weight and entity_weight must be 0"):
        AlproRetrievalConfig(**SIZES, word_weight=1.0)


def test_question_answering():
    model = make(AlproQA, AlproQAConfig, num_answers=7)
    video, ids = make_batch()
    logits = model(video, model.plan(ids, LENGTHS, [0, 2, 2]))
    for question, clip in enumerate((0, 2, 2)):
        text = ids.split(LENGTHS)[question]
        alone = model(video[clip : clip + 1], model.plan(text, (len(text),), [0]))
        torch.testing.assert_close(logits[question : question + 1], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="each of the 3 texts needs a clip, got 2"):
        model.plan(ids, LENGTHS, [0, 1])
    with pytest.raises(ValueError, match="video_of_text must not be negative, got -1"):
        model.plan(ids, LENGTHS, [0, -1, 1])
    with pytest.raises(ValueError, match="video_of_text names clip 3 of a batch of 3"):
        model(video, model.plan(ids, LENGTHS, [0, 3, 1]))


def test_pair_sequences():
    cu_seqlens = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    rows, ends = pair_sequences(cu_seqlens, torch.tensor([2, 1, 0]), torch.tensor([1, 0, 1]), video_rows=2, num_rows=14)
    assert ends.tolist() == [0, 5, 7, 11]
    # texts are rows 0-4 of the pool, clip 0 rows 5-6, clip 1 rows 7-8
    assert rows.tolist() == [2, 3, 4, 7, 8, 5, 6, 0, 1, 7, 8, 0, 0, 0]


def test_crops_follow_the_sample():
    model = make(image_size=64)
    first = model.plan(torch.tensor([5, 6]), (1, 1), torch.tensor([3, 9]), seed=1, step=2).crop
    second = model.plan(torch.tensor([5]), (1,), torch.tensor([9]), seed=1, step=2).crop
    assert torch.equal(first[1:], second)
    other = model.plan(torch.tensor([5]), (1,), torch.tensor([9]), seed=1, step=3).crop
    assert not torch.equal(other, second)
    assert np.isfinite(first.float().numpy()).all()
