"""VideoPrism's single operations, on parameters of their own."""

import re
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fastvtp.errors import UserError
from fastvtp.modules.packing import Packing
from fastvtp.modules.pooler import AttentionPooler, scale_query
from fastvtp.modules.positions import resize_positions, sinusoid_positions
from fastvtp.systems.videoprism.layers import (
    NORM_POLICIES,
    Padding,
    PrismTransformer,
    unit_length,
)
from fastvtp.systems.videoprism.weights import prepare
from fastvtp_kernels import gather_tubelets, varlen_attention
from tests.parity.compare import Row
from tests.parity.systems.prism_folder import (
    UNIT_LENGTH,
    Part,
    rows_of,
)
from tests.parity.systems.prism_text import PaddedRows, padded

INPUTS = (
    r"layer_norm/(x|scale|bias)", r"interp[12]d/(emb|source_shape)", r"patchify/image", r"l2_normalize/x",
    r"per_dim_scale/(x|per_dim_scale)", r"attention/(q|k|v|paddings)", r"pooler/[^/]+/(tokens|paddings|params/.*)",
    r"transformer/[^/]+/(x|paddings|params/.*)",
)  # fmt: skip
_SOFTCAP = 50.0  # of the transformers, which no file states
_CONSTANT = "layer_norm/y (constant rows)"
_LIMITS = {"l2_normalize": UNIT_LENGTH, _CONSTANT: 1e-3}
_BEHIND = "no released model normalises so: put together here of the model's attention, MLP and norms"


@torch.no_grad()
def rows(part: Part) -> list[Row]:
    """A row for each array that is not an input; rows of LayerNorm's input without variance have a row of their own:
    what it makes of rounding is large."""
    given = part.ops
    expected = {n: a for n, a in given.items() if not any(re.fullmatch(pattern, n) for pattern in INPUTS)}
    found = {name: array for name in expected if (array := _computed(name, part)) is not None}
    if "layer_norm/y" in expected:
        constant = given["layer_norm/x"].std(dim=-1) == 0
        for arrays in (expected, found):
            whole = arrays.pop("layer_norm/y")
            arrays |= {"layer_norm/y": whole[~constant], _CONSTANT: whole[constant]}
    notes = {name: _BEHIND for name in expected if re.match(r"transformer/post", name)}
    return rows_of(part.path.name, found, expected, _LIMITS, notes)


def _computed(name: str, part: Part) -> Tensor | None:
    """Our counterpart of an array; None: there is none."""
    operation, _, rest = name.partition("/")
    given, shape = part.ops, part.ops[name].shape
    if operation == "layer_norm":
        norm = _loaded(PrismTransformer(shape[-1], 0, 1, hidden=1, softcap=_SOFTCAP).norm, {
            "weight": 1 + given["layer_norm/scale"], "bias": given["layer_norm/bias"],
        })  # fmt: skip
        return norm(given["layer_norm/x"])
    if operation == "sinusoid":
        return sinusoid_positions(*shape[-2:])[None]
    if operation == "interp1d":
        table = given["interp1d/emb"][0]
        return resize_positions(table, (1, len(table)), (1, shape[1]))[None]
    if operation == "interp2d" and (to := re.fullmatch(r"to(\d+)x(\d+)", rest)):
        before = tuple(given["interp2d/source_shape"].tolist())
        return resize_positions(given["interp2d/emb"][0], before, (int(to[1]), int(to[2])))[None]
    if operation == "patchify" and (patch := re.fullmatch(r"patches_p(\d+)", rest)):
        return _patches(given["patchify/image"], int(patch[1]))
    if operation == "l2_normalize":
        return unit_length(given["l2_normalize/x"])
    if operation == "per_dim_scale":
        return scale_query(given["per_dim_scale/x"], given["per_dim_scale/per_dim_scale"])
    if operation == "attention" and (kind := re.fullmatch(r"cap([\d.]+)_(full|causal)/(context|probs)", rest)):
        return _attention(part, float(kind[1]), kind[2] == "causal", probabilities=kind[3] == "probs")
    if operation == "pooler":
        return _pooled(part, f"pooler/{rest.partition('/')[0]}/", masked=rest.endswith("/y"))
    if operation == "transformer":
        return _transformed(part, rest.partition("/")[0])
    return None


def _loaded(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(state)
    return module.eval()


def _patches(image: Tensor, patch: int) -> Tensor:
    """[B, H, W, C] -> [B, S, patch * patch * C]."""
    count = image.shape[1] * image.shape[2] // patch**2
    index = torch.arange(count, dtype=torch.int32).expand(len(image), -1)
    channels = image.shape[-1]
    return gather_tubelets(
        image[:, None], index, tubelet=(1, patch, patch), mean=(0.0,) * channels, std=(1.0,) * channels
    )


def _attention(part: Part, softcap: float, causal: bool, *, probabilities: bool) -> Tensor:
    """What queries get of values, or [B, H, S, S], which no op of ours holds: what they get of values that are each
    key's own axis. Padded keys are hidden; with the causal mask, the released code hides all keys from padded queries.
    """
    query, key, value = (part.ops[f"attention/{name}"] for name in "qkv")
    rows = PaddedRows(part.ops["attention/paddings"] == 0)
    batch, length, heads, dims = query.shape
    real, packing, whole = rows.real.flatten(), rows.packed(), Packing.uniform(batch, length)

    def attend(value: Tensor) -> Tensor:
        q, k, v = (array.flatten(0, 1) for array in (query, key, value))
        run = partial(varlen_attention, softcap=softcap, causal=causal)
        if not causal:
            sizes = packing.cu_seqlens, packing.max_seqlen
            out = run(q, k[real], v[real], whole.cu_seqlens, length, cu_seqlens_k=sizes[0], max_seqlen_k=sizes[1])
        else:
            out = varlen_attention(torch.zeros_like(q), k, v, whole.cu_seqlens, length)
            out[real] = run(q[real], k[real], v[real], packing.cu_seqlens, packing.max_seqlen)
        return out.view(batch, length, heads, -1)

    if not probabilities:
        return attend(value)
    axes = one_hot(torch.arange(length), -(-length // dims) * dims).to(value.dtype).split(dims, dim=1)
    shared = [attend(axis[None, :, None].expand(batch, -1, heads, -1)) for axis in axes]
    return torch.cat(shared, dim=-1)[..., :length].transpose(1, 2)


def _pooled(part: Part, start: str, *, masked: bool) -> Tensor:
    inner = f"{start}params/"
    given = {f"atten_pooler/{n.removeprefix(inner)}": array for n, array in part.ops.items() if n.startswith(inner)}
    heads, dims = given["atten_pooler/pooling_attention/key/b"].shape
    queries, width = given["atten_pooler/pooling_attention_query"].shape
    state = {name.removeprefix("pooler."): array for name, array in prepare(given).items()}
    pooler = _loaded(AttentionPooler(width, heads, heads * dims, queries), state)
    return pooler(part.ops[f"{start}tokens"], part.ops[f"{start}paddings"] == 0 if masked else None)


def _transformed(part: Part, policy: str) -> Tensor:
    """The transformer of a norm policy on padded rows; primer_hybrid is causal with ReLU, the others see all and have
    GELU, as the arrays were made."""
    start = f"transformer/{policy}/"
    inner, stack = f"{start}params/", "spatial_encoder/transformers_stack/"
    state = prepare({f"{stack}{n.removeprefix(inner)}": a for n, a in part.ops.items() if n.startswith(inner)})
    heads = part.ops[f"{inner}x_layers_0/self_attention/query/b"].shape[0]
    hidden, width = state["spatial.blocks.0.mlp.fc1.weight"].shape
    depth = sum(name.endswith("mlp.fc1.weight") for name in state)
    primer = policy == "primer_hybrid"
    model = PrismTransformer(
        width, depth, heads, hidden=hidden, softcap=_SOFTCAP,
        activation="relu" if primer else "gelu", norm_policy="primer_hybrid" if primer else "pre", final_norm=False,
    )  # fmt: skip
    _loaded(model, {name.removeprefix("spatial."): array for name, array in state.items()})
    x_BLD, real = part.ops[f"{start}x"], part.ops[f"{start}paddings"] == 0
    rows = PaddedRows(real)
    packing, padding = rows.packed(), Padding(real.flatten())
    x_ND = x_BLD.flatten(0, 1)
    with padded(model, rows):
        if policy in NORM_POLICIES:
            return model(x_ND, packing, causal=primer, padding=padding).view_as(x_BLD)
        if policy not in ("post", "post_skip"):
            raise UserError(f"{part.path}: unknown norm policy {policy!r}")
        for block in cast(Any, model.blocks):
            x_ND = _normed_behind(x_ND, block.attn(x_ND, packing), block.norm1, policy)
            x_ND = _normed_behind(x_ND, block.mlp(x_ND) * padding.real[:, None], block.norm2, policy)
    return x_ND.view_as(x_BLD)


def _normed_behind(x: Tensor, branch: Tensor, norm: nn.Module, policy: str) -> Tensor:
    return x + norm(branch) if policy == "post" else norm(x + branch)
