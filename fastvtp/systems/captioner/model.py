"""Captions and answers from frozen video features by a frozen language model (VideoPrism, arXiv:2402.13217, app. G).

Shape legend: B = clips, N = tokens of a clip, M = packed tokens of all clips, D = width of the features, Q = queries,
W = width of the language model.

Notable choices, where the paper says nothing: the queries' MLP is the usual one of four widths with GELU, a linear
layer leads to the language model, and a prompt's start token stands between the prefix and the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastvtp.errors import UserError
from fastvtp.modules.checks import (
    SQUARE_FRAMES,
    check_choice,
    check_heads,
    check_positive,
)
from fastvtp.modules.layers import CrossBlock, init_linear_normal
from fastvtp.modules.packing import Packing
from fastvtp.modules.rest_of_step import ALONE, RestOfStep
from fastvtp.settings import a_path, check_types
from fastvtp.systems.captioner.language_model import LanguageModel, PromptedTexts


@dataclass(frozen=True, kw_only=True)
class VideoCaptionerConfig:
    """The resampler's sizes, and where the frozen parts are; the defaults are the paper's for VideoPrism-B."""

    backbone: str | None = field(default=None, metadata=a_path("a run or model folder"))
    """Model folder of the frozen video model; None: features come ready made."""
    language_model: str | None = field(default=None, metadata=a_path("a folder of `transformers`"))
    """Local folder of a causal language model of `transformers`."""
    language_dtype: str = "float32"
    """Dtype of the frozen language model's weights: "float32" or "bfloat16"."""
    num_frames: int = 16
    """Frames and size of the clips that the video model reads."""
    image_size: int = 288
    feature_width: int = 768
    """D. In training it follows from the backbone."""
    language_width: int = 768
    """W. In training it follows from the language model."""
    num_queries: int = 256
    num_heads: int = 12
    mlp_ratio: float = 4.0
    prompt: str = ""
    """Words between the clip and its caption."""
    question_template: str = "Question: {question} Answer:"
    """Words between the clip and its answer."""
    max_tokens: int = 32
    """Most tokens of a caption, its end token included; longer ones are cut in training."""

    def __post_init__(self) -> None:
        check_types(self, image_size=SQUARE_FRAMES)
        check_positive(
            self, "num_frames", "image_size", "feature_width", "language_width", "num_queries", "num_heads",
            "mlp_ratio", "max_tokens",
        )  # fmt: skip
        check_choice(self, "language_dtype", ("float32", "bfloat16"))
        if self.question_template.count("{question}") != 1 or self.question_template.count("{") != 1:
            raise ValueError(f"question_template must hold {{question}} once, got {self.question_template!r}")

    def check_widths(self) -> None:
        """Raise ValueError where the heads do not fit the features, whose width may follow after the rest."""
        check_heads(self, "feature_width", "num_heads")


@dataclass(frozen=True)
class PackedFeatures:
    """Features of clips with different numbers of tokens: tokens [M, D], and which are whose."""

    tokens: Tensor
    packing: Packing


Clips = Tensor | PackedFeatures
"""Videos uint8 [B, T, H, W, 3], or their features: [B, N, D], or packed."""


@dataclass(frozen=True)
class CaptionerOutput:
    """loss: [], with graph. terms: detached values by name, each []."""

    loss: Tensor
    terms: dict[str, Tensor]


class PerceiverResampler(nn.Module):
    """A fixed number of learned queries that look at any number of tokens, through one pre-norm block.

    Queries and keys have LayerNorms of their own; unlike in Flamingo (arXiv:2204.14198) the queries are not among the
    keys. What the attention gives is added to the queries.
    """

    def __init__(self, width: int, num_queries: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.key_norm = nn.LayerNorm(width, eps=1e-6)
        self.block = CrossBlock(width, num_heads, mlp_ratio)

    def init_weights(self) -> None:
        """Draw normal matrices and queries from torch's global generator."""
        self.apply(init_linear_normal)
        nn.init.normal_(self.queries, std=0.02)

    def forward(self, tokens_MD: Tensor, packing: Packing) -> Tensor:
        """[M, D] of B sequences -> [B, Q, D]."""
        num_queries, width = self.queries.shape
        clips = len(packing.cu_seqlens) - 1
        queries = Packing.uniform(clips, num_queries, tokens_MD.device)
        x_BQD = self.queries.expand(clips, -1, -1)
        return self.block(x_BQD.flatten(0, 1), self.key_norm(tokens_MD), queries, packing).view(clips, -1, width)


class _FrozenParts:
    """What is not trained: shared by copies of the model and no part of its state."""

    backbone: Callable[[Tensor], Tensor] | None = None
    language: LanguageModel | None = None

    def __deepcopy__(self, memo: object) -> "_FrozenParts":
        return self


class VideoCaptioner(nn.Module):
    """Clip -> frozen features -> resampler -> prefix of a frozen language model, which writes what follows.

    Only `resampler` and `projection` are its weights. The video model is handed in by `attach`, whichever it is; the
    language model is read from the folder in the config when it is first needed, on the model's device, unless `attach`
    gave it.
    """

    def __init__(self, config: VideoCaptionerConfig):
        super().__init__()
        config.check_widths()
        self.config = config
        self.resampler = PerceiverResampler(
            config.feature_width, config.num_queries, config.num_heads, config.mlp_ratio
        )
        self.projection = nn.Linear(config.feature_width, config.language_width)
        self._frozen = _FrozenParts()

    def init_weights(self) -> None:
        """See `PerceiverResampler`; uses torch's global generator."""
        self.resampler.init_weights()
        self.projection.apply(init_linear_normal)

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    def attach(
        self, *, backbone: Callable[[Tensor], Tensor] | None = None, language: LanguageModel | None = None
    ) -> "VideoCaptioner":
        """Use these frozen parts, which are on the model's device; returns the model.

        backbone: any function of videos uint8 [B, T, H, W, 3] that gives [B, N, D]. None: leave that part.
        Raises UserError for a language model of another width.
        """
        if backbone is not None:
            self._frozen.backbone = backbone
        if language is not None:
            if language.width != self.config.language_width:
                raise UserError(
                    f"the language model is {language.width} wide, expected language_width {self.config.language_width}"
                )
            self._frozen.language = language
        return self

    @property
    def language(self) -> LanguageModel:
        """The frozen language model. Raises UserError where it cannot be read or has another width."""
        if self._frozen.language is None:
            folder = self.config.language_model
            if folder is None:
                raise UserError("language_model is none: expected a folder, or a model given to `attach`")
            self.attach(language=LanguageModel.load(folder, self.device, self.config.language_dtype))
        assert self._frozen.language is not None
        return self._frozen.language

    @property
    def backbone(self) -> Callable[[Tensor], Tensor]:
        """The frozen video model as a function. Raises UserError where `attach` gave none."""
        if self._frozen.backbone is None:
            raise UserError("backbone is none: expected a function given to `attach`, or features in place of clips")
        return self._frozen.backbone

    @property
    def has_backbone(self) -> bool:
        """Whether `attach` gave a video model."""
        return self._frozen.backbone is not None

    def prefix(self, clips: Clips) -> Tensor:
        """Return what the language model sees of the clips: [B, Q, W]. Raises ValueError for another shape."""
        if isinstance(clips, Tensor) and clips.ndim == 5:
            with torch.no_grad():
                clips = self.backbone(clips)
        if isinstance(clips, Tensor):
            if clips.ndim != 3:
                raise ValueError(f"clips must be [B, T, H, W, 3] or features [B, N, D], got {list(clips.shape)}")
            packing = Packing.uniform(*clips.shape[:2], device=clips.device)
            clips = PackedFeatures(clips.flatten(0, 1), packing)
        if clips.tokens.ndim != 2 or clips.tokens.shape[1] != self.config.feature_width:
            width = self.config.feature_width
            raise ValueError(f"features must be {width} wide, got tokens {list(clips.tokens.shape)}")
        tokens_MD = clips.tokens.to(self.projection.weight.dtype)
        return self.projection(self.resampler(tokens_MD, clips.packing))

    def texts(self, captions: Sequence[str], prompts: Sequence[str] | None = None) -> PromptedTexts:
        """Return captions to learn, on the model's device; prompts: one each, None: `config.prompt`."""
        return self.language.texts(self._prompts(prompts, len(captions)), captions, self.config.max_tokens)

    def forward(self, clips: Clips, texts: PromptedTexts, rest: RestOfStep = ALONE) -> CaptionerOutput:
        """Compute the loss of the captions' tokens, prompts not counted, a mean. texts: from `texts`. rest: of the step
        that the batch is a part of."""
        loss, accuracy = self.language.loss(self.prefix(clips), texts, rest)
        return CaptionerOutput(loss, {"loss/caption": loss.detach(), "token_accuracy": accuracy})

    @torch.no_grad()
    def caption(self, clips: Clips, prompts: Sequence[str] | None = None, *, num_beams: int = 1) -> list[str]:
        """Return a caption of each clip: greedy, or the best of `num_beams` beams; at most `config.max_tokens`
        tokens."""
        prefix = self.prefix(clips)
        return self.language.generate(
            prefix, self._prompts(prompts, len(prefix)), max_tokens=self.config.max_tokens, num_beams=num_beams
        )

    @torch.no_grad()
    def rank(
        self, clips: Clips, prompts: Sequence[str], candidates: Sequence[Sequence[str]], *, length: str = "sum"
    ) -> list[Tensor]:
        """Return log-likelihoods of the candidate answers of each clip behind its prompt; see
        `LanguageModel.log_likelihoods`."""
        return self.language.log_likelihoods(self.prefix(clips), prompts, candidates, length=length)

    def _prompts(self, prompts: Sequence[str] | None, count: int) -> Sequence[str]:
        return [self.config.prompt] * count if prompts is None else prompts
