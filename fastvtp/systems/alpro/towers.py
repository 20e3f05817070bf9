"""The two towers that ALPRO contrasts: TimeSformer and the lower half of BERT. The prompter is these and no more.

Shape legend: B = clips, N = packed text tokens, V = 1 + S rows of a clip (class token, patches), D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.modules.bert import (
    BertEncoder,
    TextConfig,
    TextEmbeddings,
    TextTakers,
)
from fastvtp.modules.bounds import within_bounds
from fastvtp.modules.checks import (
    check_choice,
    check_heads,
    check_ids,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.losses import CONTRAST_PRECISIONS
from fastvtp.modules.packing import Packing
from fastvtp.modules.precision import in_float32, wide
from fastvtp.modules.rest_of_step import ALONE, Collected, Compared, RestOfStep, Wanted
from fastvtp.modules.rows import QueryRows, Rows, take_rows
from fastvtp.modules.stacks import Stack
from fastvtp.systems.alpro.entities import IGNORE_RULES
from fastvtp.systems.alpro.timesformer import TimeSformer, TimeSformerConfig

_TEMPERATURES = 0.001, 0.5


@dataclass(frozen=True, kw_only=True)
class AlproConfig(TimeSformerConfig, TextConfig):
    """Sizes and objectives. `preset="official"` gives the released objectives, `"fastvtp"` the recommended ones:

    | field | official | fastvtp | reason |
    |---|---|---|---|
    | ignore_rule | "official" | "paper" | the released test compares an index with 0.2 and keeps nearly every crop |

    `hidden_patches` is "grey" in both; the published recipes take the release's "black" under "official".
    """

    pad_text: bool = False
    text_depth: int = 6
    """Layers of BERT that read text alone."""
    fusion_depth: int = 6
    """Layers of BERT above them that read text and clip together."""
    text_num_heads: int = 12
    text_hidden: int = 3072
    projection_dim: int = 256
    temperature: float = 0.07
    """Initial value, from 0.001 to 0.5; it is learned, and brought back within these bounds after each step."""
    contrast_precision: str = "auto"
    """How kernels multiply the features, as `ContrastConfig` has it."""
    gather_negatives: bool = True
    """Contrast each text with the clips of the whole batch of a step, and the other way round, or with those of its
    micro-batch alone; `contrast_scope` of a run has the last word."""
    negative_temperature: float | None = None
    """Temperature at which wrong pairs are drawn by similarity; None: the contrast's, as released. A sharp contrast
    hands fusion layers that have learned nothing yet only pairs that they cannot tell apart; a higher one mixes in
    easier pairs."""
    # the ids are bert-base-uncased's
    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] = (0, 100, 101, 102, 103)
    word_mask_ratio: float = 0.15
    num_entities: int = 1000
    ignore_rule: str = "official"
    """Which crops teach nothing: "paper" or "official", see `fastvtp.systems.alpro.entities.entity_targets`."""
    contrastive_weight: float = 1.0
    matching_weight: float = 1.0
    word_weight: float = 1.0
    """Weight of the masked words' loss; at 0 no words are masked, and the pass that reads them is left out."""
    entity_weight: float = 1.0
    """Weight of the entities' loss; at 0 there are no entities, and the prompter does not run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text()
        check_ids(self, "mask_token_id", "special_token_ids")
        check_positive(self, "text_num_heads", "text_hidden", "projection_dim", "num_entities", "fusion_depth")
        if not _TEMPERATURES[0] <= self.temperature <= _TEMPERATURES[1]:
            raise ValueError(f"temperature must be from 0.001 to 0.5, got {self.temperature}")
        if self.negative_temperature is not None and not self.negative_temperature > 0:
            raise ValueError(f"negative_temperature must be positive, or none, got {self.negative_temperature}")
        check_heads(self, "width", "text_num_heads")
        check_share(self, "word_mask_ratio")
        check_choice(self, "ignore_rule", IGNORE_RULES)
        check_choice(self, "contrast_precision", tuple(CONTRAST_PRECISIONS))
        if self.pad_text:
            raise ValueError("pad_text must be false: no feature or loss of ALPRO sees its padding")
        if self.text_depth < 1:
            raise ValueError(f"text_depth must be at least 1, got {self.text_depth}")


@dataclass(frozen=True, kw_only=True)
class AlproPrompterConfig(AlproConfig):
    """ALPRO's sizes, for its towers trained alone."""


class AlproTowers(nn.Module):
    """Makes of clips and captions tokens, and features that are contrasted; `forward` is the prompter's objective."""

    averages_unit_views = True
    """Retrieval averages a clip's views after they are scaled to unit length."""

    def __init__(self, config: AlproConfig):
        super().__init__()
        self.config = config
        self.video_encoder = TimeSformer(config)
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.text_encoder = BertEncoder(
            config.width,
            config.text_depth,
            config.text_num_heads,
            hidden=config.text_hidden,
            dropout=config.text_dropout,
        )
        self.video_projection = nn.Linear(config.width, config.projection_dim)
        self.text_projection = nn.Linear(config.width, config.projection_dim)
        self.temperature = nn.Parameter(torch.empty(()))
        self.parameter_bounds = {"temperature": _TEMPERATURES}

    def init_weights(self) -> None:
        """Initialise the weights as ViT's and BERT's, from torch's global generator."""
        for module in (self.video_encoder, self.text_embeddings, self.text_encoder):
            module.init_weights()
        for module in (self.video_projection, self.text_projection):
            module.apply(init_linear_normal)
        nn.init.constant_(self.temperature, self.config.temperature)

    @property
    def device(self) -> torch.device:
        return self.temperature.device

    def text_stack(self) -> Stack:
        """Tell how deep the parameters that read texts stand."""
        return Stack(("text_embeddings",)).under("text_encoder.layers", len(self.text_encoder.layers))

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, of clips and of texts, see `Stack`."""
        return [self.video_encoder.stack().inside("video_encoder"), self.text_stack()]

    def logit_scale(self) -> Tensor:
        """Return the inverse temperature [], of a temperature within its bounds. The release brings the parameter
        itself back before each use, `fastvtp.modules.bounds` after each step: the values are the same."""
        return 1 / wide(within_bounds(self, "temperature"))

    def video_tokens(self, video: Tensor, shown: Tensor | None = None) -> Tensor:
        """Read clips: uint8 [B, T, H, W, 3] -> [B, V, D]. shown: bool [B, S], the patches to show; None: all."""
        return self.video_encoder(video, shown)

    def text_tokens(
        self, input_ids: Tensor, positions: Tensor, packing: Packing, takers: TextTakers | None = None
    ) -> Tensor:
        """Read packed texts, by their token ids and the tokens' positions in their texts: int64 [N] each -> [N, D].
        takers: as for `TextEmbeddings`."""
        return self.text_encoder(self.text_embeddings(input_ids, positions, takers), packing)

    def video_features(self, tokens_BVD: Tensor) -> Tensor:
        """Return clips' features of unit length, from their class tokens: [B, V, D] -> float32 [B, projection_dim]."""
        return normalize(self._project(self.video_projection, tokens_BVD[:, 0]), dim=-1)

    def text_features(self, tokens_ND: Tensor, first_rows: Tensor) -> Tensor:
        """Return texts' features of unit length, from their [CLS]: packed tokens [N, D], the rows of the [CLS] int64
        [B] -> float32 [B, projection_dim]."""
        return normalize(self._project(self.text_projection, take_rows(tokens_ND, first_rows)), dim=-1)

    def embed_video(self, video: Tensor, shown: Tensor | None = None) -> Tensor:
        """Project clips' class tokens, without scaling them: uint8 [B, T, H, W, 3] -> float32 [B, projection_dim].

        shown: bool [B, S], patches that are not hidden, as for `video_tokens`; None: all.
        """
        return self._project(self.video_projection, self.video_encoder(video, shown, class_only=True)[:, 0])

    def embed_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Project texts' [CLS], without scaling them: int64 [N], int32 [B+1] -> float32 [B, projection_dim].

        max_seqlen: a bound on the longest text. Raises ValueError where that is more than the model has positions for.
        """
        x_ND, packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        return self._project(self.text_projection, self.text_encoder(x_ND, Rows(packing, QueryRows.first(packing))))

    def encode_video(self, video: Tensor, shown: Tensor | None = None) -> Tensor:
        """Compute `embed_video` at unit length."""
        return normalize(self.embed_video(video, shown), dim=-1)

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute `embed_text` at unit length."""
        return normalize(self.embed_text(input_ids, cu_seqlens, max_seqlen), dim=-1)

    def _project(self, projection: nn.Module, tokens_BD: Tensor) -> Tensor:
        """Return a projection in float32, under autocast too: [B, D] -> float32 [B, projection_dim]."""
        with torch.autocast(tokens_BD.device.type, enabled=False):
            return in_float32(projection, tokens_BD)

    def compared(self, text: Tensor, video: Tensor) -> Compared:
        """Return features of unit length, [B, projection_dim] each, of which rows i belong together, with the
        temperature that they are compared with."""
        return Compared(text, video, self.logit_scale(), precision=self.config.contrast_precision)

    def contrast(self, text: Tensor, video: Tensor, sample_ids: Tensor | None, rest: RestOfStep = ALONE) -> Tensor:
        """Compute InfoNCE, mean of both directions, of features [B, projection_dim] each, of which rows i belong
        together: [].

        sample_ids: int64 [B]; rows with equal ids are the same clip and no negatives of each other. rest: of the step.
        """
        return rest.contrast(self.compared(text, video), sample_ids)

    def forward(
        self,
        video: Tensor,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        sample_ids: Tensor | None = None,
        rest: RestOfStep = ALONE,
    ) -> Tensor:
        """Compute the contrast of a batch of clips, uint8 [B, T, H, W, 3], with its packed captions, int64 [N] and
        int32 [B+1]: a loss [].

        sample_ids: int64 [B]; rows with equal ids are the same clip and no negatives of each other. rest: of the step
        that the batch is a part of.
        """
        text = self.encode_text(input_ids, cu_seqlens, max_seqlen)
        return self.contrast(text, self.encode_video(video), sample_ids, rest)

    @torch.no_grad()
    def collect(
        self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, wanted: Wanted
    ) -> Collected:
        """Tell beforehand what the loss of a step needs of this micro-batch: its features, where they are wanted.
        Arguments as `forward`."""
        if not wanted.compared:
            return Collected()
        text = self.encode_text(input_ids, cu_seqlens, max_seqlen)
        return Collected(compared=self.compared(text, self.encode_video(video)))
