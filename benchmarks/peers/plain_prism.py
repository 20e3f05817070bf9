"""Writes VideoPrism's encoder and its second stage's student out in plain PyTorch, on the weights of fastvtp's models.

Every token goes through every block, masked ones too; nobody looks at those, which is all that masks them.

B = clips, T = frames, S = patches of a frame, L = T*S tokens of a clip, D = width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cosine_similarity, gelu, linear, softplus

from fastvtp.modules.pooler import AttentionPooler
from fastvtp.systems.videoprism.distillation import PrismStudent
from fastvtp.systems.videoprism.layers import PrismTransformer


def plain_stack(stack: PrismTransformer, x: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Send sequences [N, L, D] through a stack's blocks; tokens marked in `hidden`, bool [N, L], are no keys."""
    block: Any
    for block in stack.blocks:
        attention = block.attn
        heads = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.contiguous().unbind(0)
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        logits = attention.softcap * torch.tanh(logits / attention.softcap)
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None, None], torch.finfo(logits.dtype).min)
        out = logits.softmax(dim=-1) @ value
        x = x + attention.proj(out.transpose(1, 2).flatten(2))
        x = x + block.mlp.fc2(gelu(block.mlp.fc1(block.norm2(x))))
    return stack.norm(x)


def plain_encoder(encoder: Any, clip: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Encode a clip, float32 [B, T, 3, H, W], to tokens [B, L, D]; those marked in `hidden`, bool [B, L], are no keys.

    The clip has the size of the encoder's tables of positions.
    """
    batch, frames = clip.shape[:2]
    patches = conv2d(clip.flatten(0, 1), encoder.weight[:, :, 0], encoder.bias, stride=encoder.config.patch_size)
    x = patches.flatten(2).transpose(1, 2) + encoder.spatial_positions
    masks: tuple[Tensor | None, Tensor | None] = (None, None)
    if hidden is not None:
        grid = hidden.view(batch, frames, -1)
        masks = grid.flatten(0, 1), grid.transpose(1, 2).flatten(0, 1)
    x = plain_stack(encoder.spatial, x, masks[0]).unflatten(0, (batch, frames)).transpose(1, 2)
    x = plain_stack(encoder.temporal, (x + encoder.temporal_positions).flatten(0, 1), masks[1])
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(1, 2)


def plain_pool(pooler: AttentionPooler, x: Tensor) -> Tensor:
    """Pool tokens [B, L, D] to [B, D] with one query that looks at all of them."""
    scale = pooler.per_dim_scale
    assert scale is not None
    query = linear(pooler.queries, pooler.query.weight, pooler.query.bias).unflatten(-1, (pooler.num_heads, -1))
    query = query * softplus(scale) / softplus(torch.zeros_like(scale)) * scale.numel() ** -0.5
    key, value = (part(x).unflatten(-1, (pooler.num_heads, -1)) for part in (pooler.key, pooler.value))
    weights = torch.einsum("qhk,blhk->bhql", query, key).softmax(dim=-1)
    pooled = torch.einsum("bhql,blhk->bqhk", weights, value).flatten(2)
    return pooler.norm(pooler.proj(pooled))[:, 0]


class PlainStudent(nn.Module):
    """The plain student takes the step of a `PrismStudent` without auxiliary blocks, on all tokens, not packed ones."""

    def __init__(self, student: PrismStudent):
        super().__init__()
        self.student = student

    def forward(self, clip: Tensor, visible: Tensor, hidden: Tensor, order: Tensor) -> Tensor:
        """Return the loss [] of a clip, float32 [B, T, 3, H, W].

        `visible`, int64 [B, Kv], lists the tokens that the student sees, `hidden`, bool [B, L], marks the others, and
        `order`, int64 [B, L], is the one that `LocalDecoder` takes.
        """
        student = self.student
        local, pooled = student.local_decoder, student.global_decoder
        assert local is not None
        assert pooled is not None
        with torch.no_grad():
            wanted = plain_encoder(student.teacher.video_encoder, clip)
            summary = plain_pool(student.teacher.pooler, wanted)
        encoded = plain_encoder(student.encoder, clip, hidden)
        seen = torch.take_along_dim(encoded, visible[..., None], dim=1)

        masked = local.mask_token.expand(len(clip), hidden.shape[1] - visible.shape[1], -1)
        x = torch.cat([local.project(seen).to(masked.dtype), masked], dim=1)
        x = torch.take_along_dim(x, order[..., None], dim=1) + local.positions
        token_loss = 1 - cosine_similarity(local.head(plain_stack(local.transformer, x)), wanted, dim=-1).mean()

        x = plain_stack(pooled.transformer, pooled.project(seen).to(masked.dtype))
        global_loss = 1 - cosine_similarity(pooled.head(plain_pool(pooled.pooler, x)), summary, dim=-1).mean()
        return token_loss + global_loss
