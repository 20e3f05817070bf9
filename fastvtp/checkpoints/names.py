"""Renaming of checkpoint entries."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvtp.errors import CheckpointError

# ends of the names of texts' embeddings, in any kind of checkpoint
WORD_TABLES = (
    "word_embeddings.weight",
    "text_encoder.token_embeddings.weight",
    "embeddings.token_embedding.weight",
    "token_emb/emb_var",
)

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class NameMap:
    """Regular expressions and their replacements. The first of `stems` that matches the start of a name is applied,
    then the first of `parts` that matches after a dot."""

    stems: Rules
    parts: Rules = ()

    def __call__(self, name: str) -> str:
        for rules, place in ((self.stems, r"^"), (self.parts, r"(?<=\.)")):
            for pattern, replacement in rules:
                renamed, count = re.subn(place + pattern, replacement, name, count=1)
                if count:
                    name = renamed
                    break
        return name


def side_by_side(weights: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Join entries, such as queries', keys' and values', along axis 0. Raises CheckpointError where shapes differ."""
    shapes = [list(weights[name].shape) for name in names]
    if not shapes[0] or shapes.count(shapes[0]) < len(shapes):
        raise CheckpointError(f"{', '.join(names)} are {shapes}, expected one shape")
    return torch.cat([weights[name] for name in names])


def join_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `weights` with query, key and value matrices as one: three of [D, D] -> [3D, D], named qkv.weight.

    A block that lacks one of them is left as it is, for the loader to name.
    """
    joined = dict(weights)
    for name in weights:
        if name.endswith(("attention.query.weight", "self.query.weight")):
            stem = name.removesuffix("query.weight")
            parts = [f"{stem}{part}.weight" for part in ("query", "key", "value")]
            if all(part in weights for part in parts):
                joined[f"{stem}qkv.weight"] = torch.cat([joined.pop(part) for part in parts])
    return joined
