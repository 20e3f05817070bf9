"""Names of the released SimVTP checkpoints -> fastvtp's."""

import re

from torch import Tensor

_RENAMES = (
    (r"^encoder\.patch_embed\.proj\.", "video_embeddings."),
    (r"^text_embeddings\.LayerNorm\.", "text_embeddings.norm."),
    (r"^decoder\.(blocks|norm)\.", r"decoder.transformer.\1."),
    (r"^encoder_to_decoder\.", "decoder.project."),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^text_cls\.", "word_head."),
    (r"^vtm_head\.", "match_head."),
)


def rename_simvtp(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a released pretraining checkpoint under fastvtp's names.

    Drops the `position_ids` buffer that old versions of transformers saved.
    """
    renamed = {}
    for name, tensor in weights.items():
        if name == "text_embeddings.position_ids":
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.reshape(-1) if name == "decoder.mask_token" else tensor
    return renamed
