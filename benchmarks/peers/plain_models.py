"""Arranges VideoMAE and SimVTP in plain PyTorch as the released code is; they are peers of the training step.

Every token of the clip is embedded before nine of ten are dropped, captions are padded, attention is over padded rows,
and SimVTP encodes five times a step: joint, video, text, and then matched and mismatched pairs, the last two as one
batch, as released. Modules carry the names of fastvtp's, so that one state dict fits both and both must give the same
loss.

Shape legend: B clips, L tokens of a (padded) sequence, D width, Kv / Km visible / masked tubelets, P values of one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvtp.modules.bert import TextEmbeddings
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.videomae.model import VideoMAEConfig

from ..harness.workload import engine_loss


class PlainAttention(nn.Module):
    """Plain attention computes softmax(q k^T) v over padded rows; `kernel` is "manual" as released, or "sdpa"."""

    def __init__(self, width: int, num_heads: int, kernel: str):
        super().__init__()
        self.num_heads, self.kernel = num_heads, kernel
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, mask: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x_BLD, self.qkv.weight, bias)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.kernel == "sdpa":
            out = F.scaled_dot_product_attention(query, key, value, mask)
        else:
            logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
            out = (logits if mask is None else logits + mask).softmax(dim=-1) @ value
        return self.proj(out.transpose(1, 2).flatten(2))


class PlainMlp(nn.Module):
    """The MLP of a block is two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    """A block adds attention and then an MLP to its input, each of the normalised input (pre-norm)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, kernel: str):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = PlainAttention(width, num_heads, kernel)
        self.mlp = PlainMlp(width, int(width * mlp_ratio))

    def forward(self, x_BLD: Tensor, mask: Tensor | None) -> Tensor:
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD), mask)
        return x_BLD + self.mlp(self.norm2(x_BLD))


class PlainTransformer(nn.Module):
    """A plain transformer is a stack of blocks with a norm at its end."""

    def __init__(self, width: int, depth: int, num_heads: int, mlp_ratio: float, kernel: str):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(width, num_heads, mlp_ratio, kernel) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_BLD: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD, mask)
        return self.norm(x_BLD)


class PlainVideoEmbeddings(nn.Module):
    """The embeddings convolve every tubelet of the float clip, add positions, then pick the visible ones."""

    positions: Tensor

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.tubelet, tokens = config.tubelet, config.grid[0] * config.grid[1] * config.grid[2]
        self.weight = nn.Parameter(torch.empty(config.width, 3, *config.tubelet))
        self.bias = nn.Parameter(torch.empty(config.width))
        self.register_buffer("positions", torch.empty(tokens, config.width), persistent=False)

    def forward(self, clip: Tensor, hidden: Tensor) -> Tensor:
        """Embed a clip, float32 [B, 3, T, H, W]; return the tokens [B, Kv, D] that `hidden`, bool [B, L], leaves."""
        x_BLD = F.conv3d(clip, self.weight, self.bias, stride=self.tubelet).flatten(2).transpose(1, 2)
        x_BLD = x_BLD + self.positions.type_as(x_BLD)
        return x_BLD[~hidden].reshape(len(clip), -1, x_BLD.shape[-1])


class PlainVideoDecoder(nn.Module):
    """The decoder appends mask tokens to the visible ones and predicts the pixels of the hidden tubelets."""

    positions: Tensor

    def __init__(self, config: VideoMAEConfig, kernel: str):
        super().__init__()
        width, tokens = config.decoder_width, config.grid[0] * config.grid[1] * config.grid[2]
        self.project = nn.Linear(config.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.transformer = PlainTransformer(
            width, config.decoder_depth, config.decoder_num_heads, config.mlp_ratio, kernel
        )
        tubelet_values = 3 * config.tubelet[0] * config.tubelet[1] * config.tubelet[2]
        self.head = nn.Linear(width, tubelet_values)
        self.register_buffer("positions", torch.empty(tokens, width), persistent=False)

    def forward(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Return the pixels [B, Km, P] of hidden tubelets, bool [B, L], from the encoded visible ones [B, Kv, D]."""
        x = self.project(visible)
        batch, _, width = x.shape
        positions = self.positions.expand(batch, -1, -1).type_as(x)
        shown = x + positions[~hidden].reshape(batch, -1, width)
        masked = self.mask_token + positions[hidden].reshape(batch, -1, width)
        x = self.transformer(torch.cat([shown, masked], dim=1))
        return self.head(x[:, -masked.shape[1] :])


class PlainVideoMAE(nn.Module):
    """The plain VideoMAE returns the pixel loss [] of a float clip whose hidden tubelets it predicts."""

    def __init__(self, config: VideoMAEConfig, kernel: str = "manual"):
        super().__init__()
        self.tubelet = config.tubelet
        self.video_embeddings = PlainVideoEmbeddings(config)
        self.encoder = PlainTransformer(config.width, config.depth, config.num_heads, config.mlp_ratio, kernel)
        self.decoder = PlainVideoDecoder(config, kernel)

    def forward(self, clip: Tensor, hidden: Tensor) -> Tensor:
        visible = self.encoder(self.video_embeddings(clip, hidden))
        return engine_loss(self.decoder(visible, hidden), clip, hidden, self.tubelet)


class PlainSimVTP(PlainVideoMAE):
    """The plain SimVTP returns the sum of all four losses, each with weight 1, in the official preset."""

    def __init__(self, config: SimVTPConfig, kernel: str = "manual"):
        super().__init__(config, kernel)
        self.pad_token_id, self.temperature = config.pad_token_id, config.temperature
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.word_head = nn.Linear(config.width, config.vocab_size)
        self.match_head = nn.Linear(config.width, 2)

    def forward(self, clip: Tensor, hidden: Tensor, ids: Tensor, labels: Tensor, other: Tensor) -> Tensor:
        """Return the loss [] of clips with their captions, which are masked and padded.

        `ids` are the captions' words, int64 [B, Lt]; `labels`, int64 [B, Lt], is -100 where no word is masked; `other`,
        int64 [B], names the wrong clip that is shown with each caption.
        """
        video = self.video_embeddings(clip, hidden)
        text = self.text_embeddings(ids.flatten(), torch.arange(ids.shape[1], device=ids.device).repeat(len(ids)))
        text = text.view(*ids.shape, -1)
        real = ids != self.pad_token_id
        shown = torch.ones(video.shape[:2], dtype=torch.bool, device=ids.device)
        joint_mask = additive(torch.cat([shown, real], dim=1), video.dtype)
        joint = self.encoder(torch.cat([video, text], dim=1), joint_mask)
        num_visible = video.shape[1]

        pixels = engine_loss(self.decoder(joint[:, :num_visible], hidden), clip, hidden, self.tubelet)
        word_logits = self.word_head(joint[:, num_visible:])
        words = F.cross_entropy(word_logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)

        video_feature = mean_of(self.encoder(video))
        text_feature = mean_of(self.encoder(text, additive(real, text.dtype)))
        pairs = torch.cat([torch.cat([video, text], dim=1), torch.cat([video[other], text], dim=1)])
        paired = self.encoder(pairs, joint_mask.repeat(2, 1, 1, 1))
        with torch.autocast(clip.device.type, enabled=False):
            logits = F.normalize(text_feature, dim=-1) @ F.normalize(video_feature, dim=-1).T / self.temperature
            index = torch.arange(len(clip), device=clip.device)
            contrast = F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)
            match_logits = self.match_head(mean_of(paired))
            matched = torch.arange(2 * len(clip), device=clip.device) < len(clip)
            matching = F.cross_entropy(match_logits, matched.long())
        return pixels + words + contrast + matching


def additive(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [B, 1, 1, L] that, added to logits, hides the keys that are False in bool [B, L]."""
    return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill(~keys, -1e4)[:, None, None, :]


def mean_of(x_BLD: Tensor) -> Tensor:
    """Return the mean over all tokens, float32 [B, D]; padding counts, as in the released code."""
    return x_BLD.float().mean(dim=1)
