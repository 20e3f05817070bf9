"""Arranges ALPRO in plain PyTorch as the released code is; it is the peer of ALPRO's training step.

A step makes seven calls: the text tower reads plain and masked captions one after the other, the video tower clips and
(the prompter's) crops; BERT's upper layers fuse matched pairs, mismatched ones, then masked captions with their clips.
Captions are padded to a fixed length, time and space attend on transposed copies, and words are predicted for every row
of a caption. Modules carry the names of fastvtp's, so that one state dict fits both and both must give the same loss.
In favour of this side: query, key and value of BERT come from one product, not three, and the hard negatives are given.

Shape legend: B clips, T frames, S patches of a frame, L tokens of a padded sequence, D width, E entities.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvtp.modules.bert import TextEmbeddings, WordTransform
from fastvtp.systems.alpro.timesformer import TimeSformerConfig
from fastvtp.systems.alpro.towers import AlproConfig

from .plain_models import PlainAttention, PlainMlp, additive


class PlainDividedBlock(nn.Module):
    """A divided block attends along time, then within each frame; patches lie place by place, their frames together."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, kernel: str):
        super().__init__()
        self.temporal_norm, self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.temporal_attn, self.attn = (PlainAttention(width, num_heads, kernel) for _ in range(2))
        self.temporal_fc = nn.Linear(width, width)
        self.mlp = PlainMlp(width, int(width * mlp_ratio))

    def forward(self, x_BLD: Tensor, frames: int) -> Tensor:
        """Take and return [B, 1 + S*T, D], the class token first."""
        batch, cls = len(x_BLD), x_BLD[:, :1]
        times = x_BLD[:, 1:].unflatten(1, (-1, frames)).flatten(0, 1)
        update = self.temporal_attn(self.temporal_norm(times), None).unflatten(0, (batch, -1)).flatten(1, 2)
        patches = x_BLD[:, 1:] + self.temporal_fc(update)

        each_cls = cls.repeat(1, frames, 1).flatten(0, 1)[:, None]
        framed = torch.cat([each_cls, patches.unflatten(1, (-1, frames)).transpose(1, 2).flatten(0, 1)], dim=1)
        update = self.attn(self.norm1(framed), None)
        of_cls = update[:, 0].unflatten(0, (-1, frames)).mean(dim=1, keepdim=True)
        of_patches = update[:, 1:].unflatten(0, (-1, frames)).transpose(1, 2).flatten(1, 2)
        x_BLD = torch.cat([cls, patches], dim=1) + torch.cat([of_cls, of_patches], dim=1)
        return x_BLD + self.mlp(self.norm2(x_BLD))


class PlainTimeSformer(nn.Module):
    """The video tower turns a clip, float32 [B, T, 3, H, W], into [B, 1 + S, D], its patches averaged over time."""

    def __init__(self, config: TimeSformerConfig, kernel: str):
        super().__init__()
        width, self.patch = config.width, config.patch_size
        self.weight = nn.Parameter(torch.empty(width, 3, 1, self.patch, self.patch))
        self.bias, self.cls_token, self.cls_position = (nn.Parameter(torch.empty(width)) for _ in range(3))
        self.patch_positions = nn.Parameter(torch.empty(config.num_patches, width))
        self.time_positions = nn.Parameter(torch.empty(config.num_frames, width))
        self.blocks = nn.ModuleList(
            PlainDividedBlock(width, config.num_heads, config.mlp_ratio, kernel) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, clip: Tensor) -> Tensor:
        batch, frames = clip.shape[:2]
        x = F.conv2d(clip.flatten(0, 1), self.weight[:, :, 0], self.bias, stride=self.patch)
        x = (
            (x.flatten(2).transpose(1, 2) + self.patch_positions)
            .unflatten(0, (batch, -1))
            .transpose(1, 2)
            .flatten(0, 1)
        )
        x = (x + self.time_positions).unflatten(0, (batch, -1)).flatten(1, 2)
        cls = (self.cls_token + self.cls_position).to(x.dtype).expand(batch, 1, -1)
        x_BLD = torch.cat([cls, x], dim=1)
        for block in self.blocks:
            x_BLD = block(x_BLD, frames)
        x_BLD = self.norm(x_BLD)
        patches = x_BLD[:, 1:].unflatten(1, (-1, frames)).mean(dim=2)
        return torch.cat([x_BLD[:, :1], patches], dim=1)


class PlainBertLayer(nn.Module):
    """A layer of BERT normalises after it has added attention, and after the MLP (post-norm)."""

    def __init__(self, width: int, num_heads: int, hidden: int, kernel: str):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.attn = PlainAttention(width, num_heads, kernel)
        self.mlp = PlainMlp(width, hidden)

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        x_BLD = self.norm1(x_BLD + self.attn(x_BLD, mask))
        return self.norm2(x_BLD + self.mlp(x_BLD))


class PlainBert(nn.Module):
    """A stack of BERT's layers reads texts, or fuses them with clips."""

    def __init__(self, config: AlproConfig, depth: int, kernel: str):
        super().__init__()
        sizes = config.width, config.text_num_heads, config.text_hidden
        self.layers = nn.ModuleList(PlainBertLayer(*sizes, kernel) for _ in range(depth))

    def forward(self, x_BLD: Tensor, real: Tensor) -> Tensor:
        """Send [B, L, D] through the layers; the tokens marked in `real`, bool [B, L], are attended to."""
        mask = additive(real, x_BLD.dtype)
        for layer in self.layers:
            x_BLD = layer(x_BLD, mask)
        return x_BLD


class PlainTowers(nn.Module):
    """The two towers encode clips and texts by themselves, with a projection of each into the common space."""

    def __init__(self, config: AlproConfig, kernel: str):
        super().__init__()
        self.video_encoder = PlainTimeSformer(config, kernel)
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.text_encoder = PlainBert(config, config.text_depth, kernel)
        self.video_projection, self.text_projection = (nn.Linear(config.width, config.projection_dim) for _ in range(2))
        self.temperature = nn.Parameter(torch.empty(()))

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Encode padded texts, int64 [B, L], whose words `real` marks, to [B, L, D]."""
        positions = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids))
        return self.text_encoder(self.text_embeddings(ids.flatten(), positions).view(*ids.shape, -1), real)


class AlproInputs(NamedTuple):
    """The inputs of a step are clips with their crops, and captions with their masked words and wrong partners.

    `clip` and `crops` are float32 [B, T, 3, H, W], the latter zero outside the crop, whose patches `inside`, bool
    [B, S], marks. Captions are padded, int64 [B, L]: `ids` has them whole, `masked_ids` with words masked, and `labels`
    those words, -100 elsewhere. `wrong_clip` and `wrong_text`, int64 [B], name each text's clip and each clip's text of
    the mismatched pairs.
    """

    clip: Tensor
    crops: Tensor
    inside: Tensor
    ids: Tensor
    masked_ids: Tensor
    labels: Tensor
    wrong_clip: Tensor
    wrong_text: Tensor


class PlainAlpro(PlainTowers):
    """The plain ALPRO returns all four losses added up, each with weight 1, in the official preset without dropout."""

    video_prompts: Tensor

    def __init__(self, config: AlproConfig, kernel: str = "manual"):
        super().__init__(config, kernel)
        width, entities = config.width, config.num_entities
        self.pad_token_id = config.pad_token_id
        self.fusion_encoder = PlainBert(config, config.fusion_depth, kernel)
        self.match_head = nn.Linear(width, 2)
        self.word_transform = WordTransform(width, config.vocab_size)
        self.entity_head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, entities))
        self.prompter = PlainTowers(config, kernel).requires_grad_(False)
        for kind in ("video", "image"):
            self.register_buffer(f"{kind}_prompts", torch.empty(entities, config.projection_dim))

    def forward(self, inputs: AlproInputs) -> Tensor:
        """Return the loss [] of a step."""
        clip, crops, inside, ids, masked_ids, labels, wrong_clip, wrong_text = inputs
        real = ids != self.pad_token_id
        video = self.video_encoder(clip)
        text = self.read(ids, real)
        fused = self.fuse(text, real, video)
        texts, reals = torch.cat([text, text[wrong_text]]), torch.cat([real, real[wrong_text]])
        mismatched = self.fuse(texts, reals, torch.cat([video[wrong_clip], video]))
        with_words = self.fuse(self.read(masked_ids, real), real, video)[:, : ids.shape[1]]
        decoder = self.text_embeddings.word_embeddings.weight
        word_logits = F.linear(self.word_transform(with_words), decoder, self.word_transform.bias)
        words = F.cross_entropy(word_logits.float().flatten(0, 1), labels.flatten())
        with torch.autocast(clip.device.type, enabled=False):
            contrast = self.contrast(text[:, 0].float(), video[:, 0].float())
            match_logits = self.match_head(torch.cat([fused[:, 0], mismatched[:, 0]]).float())
            matched = (torch.arange(len(match_logits), device=clip.device) < len(clip)).long()
        entities = self.entities(fused[:, ids.shape[1] + 1 :], inside, self.soft_labels(crops))
        return contrast + F.cross_entropy(match_logits, matched) + words + entities

    def fuse(self, text: Tensor, real: Tensor, video: Tensor) -> Tensor:
        """Fuse each text [B, L, D] with its clip [B, 1 + S, D], the text's tokens first."""
        keys = torch.cat([real, real.new_ones(video.shape[:2])], dim=1)
        return self.fusion_encoder(torch.cat([text, video.to(text.dtype)], dim=1), keys)

    def contrast(self, text: Tensor, video: Tensor) -> Tensor:
        """Return the contrastive loss [] between the class tokens [B, D] of texts and clips."""
        text, video = F.normalize(self.text_projection(text), dim=-1), F.normalize(self.video_projection(video), dim=-1)
        logits, index = text @ video.T / self.temperature, torch.arange(len(text), device=text.device)
        return (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2

    @torch.no_grad()
    def soft_labels(self, crops: Tensor) -> Tensor:
        """Return how like the crops are to the prompts, as logits float32 [B, E]."""
        tokens = self.prompter.video_encoder(crops)
        with torch.autocast(crops.device.type, enabled=False):
            features = F.normalize(self.prompter.video_projection(tokens[:, 0].float()), dim=-1)
            return features @ self.video_prompts.T / self.prompter.temperature

    def entities(self, patches: Tensor, inside: Tensor, targets: Tensor) -> Tensor:
        """Return the loss [] of the entities told from the mean patch [B, S, D] inside each crop.

        A crop that looks most like entity 0 is left out, as released.
        """
        with torch.autocast(patches.device.type, enabled=False):
            pooled = (patches.float() * inside[..., None]).sum(dim=1) / inside.sum(dim=1, keepdim=True)
            each = -(targets.softmax(dim=1) * F.log_softmax(self.entity_head(pooled), dim=1)).sum(dim=1)
        kept = (targets.argmax(dim=1) != 0).float()
        return (each * kept).sum() / kept.sum()
