"""Every registered model runs, and learns, in the dtype that it was cast to; losses and scores are float32 then."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastvtp.systems  # noqa: F401 (registers them)
from fastvtp.architecture import architectures, build_model
from fastvtp.systems.alpro.finetuning import AlproQAConfig, AlproRetrievalConfig
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig
from fastvtp.systems.captioner.language_model import PromptedTexts
from fastvtp.systems.captioner.model import VideoCaptionerConfig
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAEConfig
from fastvtp.systems.videoprism.distillation import PrismStudentConfig, PrismTeacherConfig
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig, VideoPrismConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig

FRAMES, SIDE, CLIPS = 4, 24, 3
SIZES: dict[str, Any] = {"num_frames": FRAMES, "image_size": SIDE, "width": 24, "depth": 2, "num_heads": 2}
TEXT: dict[str, Any] = {"vocab_size": 150, "max_text_length": 12, "text_dropout": 0.0}
TUBELETS: dict[str, Any] = {"tubelet": (2, 8, 8), "layer_scale": 0.1}
DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 2, "decoder_num_heads": 2, "video_mask_ratio": 0.6}
ALPRO: dict[str, Any] = {
    **SIZES, **TEXT, "patch_size": 8, "text_depth": 1, "fusion_depth": 2, "text_num_heads": 2, "text_hidden": 40,
    "projection_dim": 8, "num_entities": 5,
}  # fmt: skip
PRISM: dict[str, Any] = {**SIZES, "patch_size": 8, "temporal_depth": 1, "mlp_hidden": 40}
CONTRAST: dict[str, Any] = {"learnable_temperature": True, "projection_dim": 8}

VIDEO = torch.randint(
    0, 256, (CLIPS, FRAMES, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
)
LENGTHS = (4, 6, 5)
IDS = torch.randint(110, 150, (sum(LENGTHS),), generator=torch.Generator().manual_seed(6))
TEXTS = IDS, torch.tensor([0, 4, 10, 15], dtype=torch.int32), 6
SAMPLES = torch.tensor([3, 1, 8])
DRAW: dict[str, int] = {"seed": 2, "step": 4}
Outputs = dict[str, Tensor]


class Case(NamedTuple):
    """A configuration, and what the model computes: its loss, and what else is documented to be float32."""

    config: Any
    run: Callable[[Any], Outputs]


def _judged(logits: Tensor) -> Outputs:
    return {"loss": cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]), "logits": logits}


def _encoded(model: Any) -> Outputs:
    return {"video": model.encode_video(VIDEO), "text": model.encode_text(*TEXTS)}


def _contrasted(model: Any, **options: Any) -> Outputs:
    found = model(VIDEO, *TEXTS, sample_ids=SAMPLES, **options)
    return {"loss": getattr(found, "loss", found)} | _encoded(model)


def _planned(model: Any) -> Outputs:
    found = model(VIDEO, model.plan(IDS, LENGTHS, SAMPLES, **DRAW))
    return {"loss": found.loss, "match": found.match_logits} | _encoded(model)


def _alpro(model: Any) -> Outputs:
    with torch.no_grad():
        generator = torch.Generator().manual_seed(8)
        for prompts in (model.video_prompts, model.image_prompts):
            prompts.copy_(torch.randn(prompts.shape, generator=generator))
    return _planned(model)


def _towers(model: Any, *args: Any) -> Outputs:
    features, pooled = model(VIDEO)
    loss = features.square().mean().to(torch.promote_types(features.dtype, torch.float32))
    return {"loss": loss + pooled.square().mean()}


class _Language(nn.Module):
    """Stands for a language model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        mixed = inputs_embeds.cumsum(1) / inputs_embeds.shape[1]
        return SimpleNamespace(logits=self.head(mixed)[:, -logits_to_keep:])


def _captioner(model: Any) -> Outputs:
    from fastvtp.systems.captioner.language_model import LanguageModel

    generator = torch.Generator().manual_seed(7)
    language = object.__new__(LanguageModel)
    torch.manual_seed(3)
    language.model = _Language().to(model.projection.weight.dtype).requires_grad_(False)
    language._check_room = lambda rows: None
    model._frozen.language = language
    ids = torch.randint(0, 30, (CLIPS, 5), generator=generator)
    features = torch.randn(CLIPS, 7, 24, generator=generator)
    return {"loss": model(features, PromptedTexts(ids, torch.ones(CLIPS, 5, dtype=torch.bool), ids)).loss}


def _prism_encoder(model: Any) -> Outputs:
    tokens = model(VIDEO)
    return {"loss": tokens.to(torch.promote_types(tokens.dtype, torch.float32)).pow(3).mean()}


CASES: dict[str, Case] = {
    "simvtp": Case(
        SimVTPConfig(**SIZES, **TEXT, **TUBELETS, **DECODER, **CONTRAST, matching_negatives="random"), _planned
    ),
    "dual_encoder": Case(DualEncoderConfig(**SIZES, **TEXT, **TUBELETS, **CONTRAST), _contrasted),
    "video_qa": Case(
        VideoQAConfig(**SIZES, **TEXT, **TUBELETS, num_answers=7, head_dropout=0.0, pad_text=False),
        lambda model: _judged(model(VIDEO, model.plan(IDS, LENGTHS, [1, 0, 2]))),
    ),
    "videomae": Case(
        VideoMAEConfig(**SIZES, **TUBELETS, **DECODER),
        lambda model: {"loss": model(VIDEO, model.plan(SAMPLES, **DRAW)).loss},
    ),
    "video_classifier": Case(
        VideoClassifierConfig(**SIZES, **TUBELETS, num_classes=9), lambda model: _judged(model(VIDEO))
    ),
    "alpro": Case(AlproConfig(**ALPRO, ignore_rule="official"), _alpro),
    "alpro_prompter": Case(AlproPrompterConfig(**ALPRO), _contrasted),
    "alpro_retrieval": Case(AlproRetrievalConfig(**ALPRO), _planned),
    "alpro_qa": Case(
        AlproQAConfig(**ALPRO, num_answers=6),
        lambda model: _judged(model(VIDEO, model.plan(IDS, LENGTHS, [1, 0, 2]))),
    ),
    "videoprism": Case(VideoPrismConfig(**PRISM), _prism_encoder),
    "video_text_prism": Case(
        VideoTextPrismConfig(**PRISM, **CONTRAST, auxiliary_depth=1, vocab_size=150, max_text_length=12, text_depth=1),
        lambda model: _contrasted(model, visible=model.plan(VIDEO, SAMPLES, **DRAW)),
    ),
    "prism_classifier": Case(PrismClassifierConfig(**PRISM, num_classes=9), lambda model: _judged(model(VIDEO))),
    "prism_teacher": Case(PrismTeacherConfig(**PRISM, auxiliary_depth=1), _towers),
    "prism_student": Case(
        PrismStudentConfig(
            **PRISM, mask_min_cells=1, decoder_width=16, decoder_depth=1, decoder_num_heads=2, decoder_hidden=24,
            projector="mlp",
        ),
        lambda model: {"loss": model(VIDEO, model.plan(SAMPLES, **DRAW)).loss},
    ),
    "video_captioner": Case(
        VideoCaptionerConfig(feature_width=24, language_width=16, num_queries=3, num_heads=2), _captioner
    ),
}  # fmt: skip
# The same with another road through the model.
MORE: dict[str, Case] = {
    "simvtp, hard negatives": Case(
        SimVTPConfig(**SIZES, **TEXT, **TUBELETS, **DECODER, pad_text=False, matching_negatives="hard"), _planned
    ),
    "dual_encoder, one transformer": Case(
        DualEncoderConfig(**SIZES, **TEXT, **TUBELETS, shared_encoder=True), _contrasted
    ),
    "video_qa, masked word": Case(
        VideoQAConfig(
            **SIZES, **TEXT, **TUBELETS, num_answers=7, head_dropout=0.0, pad_text=False, readout="mask",
            mask_token_id=103,
        ),
        CASES["video_qa"].run,
    ),
    "videomae, cross": Case(VideoMAEConfig(**SIZES, **TUBELETS, **DECODER, decoder="cross"), CASES["videomae"].run),
    "video_text_prism, another grid": Case(
        VideoTextPrismConfig(
            **{**PRISM, "num_frames": 6, "image_size": 32}, auxiliary_depth=0, vocab_size=150, max_text_length=12,
            text_depth=1, text_norm="primer_hybrid",
        ),
        _contrasted,
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", [*CASES.values(), *MORE.values()], ids=[*CASES, *MORE])


def make(case: Case) -> Any:
    torch.manual_seed(0)
    model = build_model(case.config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Zeros hide what they are multiplied with.
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model.eval()


def learned(case: Case, model: Any) -> tuple[Outputs, dict[str, Tensor]]:
    """All outputs, and the gradients of the loss by the names of the parameters that have one."""
    outputs = case.run(model)
    outputs["loss"].backward()
    return outputs, {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


def test_every_architecture_has_a_case():
    assert set(CASES) == set(architectures())
    for name, case in CASES.items():
        assert type(case.config) is architectures()[name].config, name


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_short_dtype(case, dtype):
    model = make(case)
    expected, gradients = learned(case, copy.deepcopy(model))
    outputs, found = learned(case, model.to(dtype))
    assert found.keys() == gradients.keys()
    for name, gradient in found.items():
        assert gradient.dtype == dtype, name
        assert gradient.isfinite().all(), name
    for name, value in outputs.items():
        assert value.dtype == torch.float32, name
        size = expected[name].abs().max().clamp(min=0.1)
        assert (value - expected[name]).abs().max() <= 16 * torch.finfo(dtype).eps * max(1, size), name
    whole, right = (torch.cat([g.flatten().double() for g in x.values()]) for x in (found, gradients))
    assert torch.cosine_similarity(whole, right, dim=0) > (0.97 if dtype == torch.bfloat16 else 0.995)


@every_case
def test_float64_is_float64_throughout(case):
    """The derivative in a direction, by differences that float32 anywhere on the way would drown in its rounding."""
    model = make(case)
    single = case.run(copy.deepcopy(model))
    outputs, gradients = learned(case, model.double())
    for name, value in outputs.items():
        assert value.dtype == torch.float64, name
        torch.testing.assert_close(single[name].double(), value, rtol=1e-5, atol=1e-5)
    generator = torch.Generator().manual_seed(9)
    way = {name: torch.randn(g.shape, generator=generator, dtype=torch.float64) for name, g in gradients.items()}
    for name, step in way.items():
        if name.endswith("word_embeddings.weight"):
            # The row of [PAD], which is read where texts are padded, is not learned.
            step[0] = 0
    slope = sum((gradients[name] * step).sum() for name, step in way.items())
    losses, size = [], 1e-6
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if name in way:
                    parameter.add_(sign * size * way[name])
        losses.append(case.run(moved)["loss"].detach())
    difference = (losses[0] - losses[1]) / (2 * size)
    assert abs(difference - slope) <= 1e-6 * (abs(slope) + 1e-1)
