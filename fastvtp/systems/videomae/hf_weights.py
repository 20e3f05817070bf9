"""Names of transformers' VideoMAE checkpoints -> fastvtp's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastvtp.checkpoints.heads import HeadTable
from fastvtp.checkpoints.kinds import Kind, Shapes, accepted
from fastvtp.checkpoints.names import NameMap, join_attention
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.errors import CheckpointError

# fastvtp's setting -> transformers'
_SETTINGS = {
    "num_frames": "num_frames",
    "num_heads": "num_attention_heads",
    "decoder_num_heads": "decoder_num_attention_heads",
    "normalize_target": "norm_pix_loss",
}
_NORM_EPS = 1e-12  # transformers' default
_HEAD_NORM_EPS = 1e-5  # nor is it a setting there

_BLOCK = (
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"attention\.attention\.qkv\.", "attn.qkv."),
    # versions differ: q_bias or query.bias
    (r"attention\.attention\.(q_|query\.)bias$", "attn.q_bias"),
    (r"attention\.attention\.(v_|value\.)bias$", "attn.v_bias"),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)
_ENCODER = (
    (r"(videomae\.)?embeddings\.patch_embeddings\.projection\.", "video_embeddings."),
    (r"(videomae\.)?encoder\.layer\.", "encoder.blocks."),
    (r"(videomae\.)?layernorm\.", "encoder.norm."),
)
PRETRAINING = NameMap(
    (
        *_ENCODER,
        (r"decoder\.decoder_layers\.", "decoder.transformer.blocks."),
        (r"decoder\.norm\.", "decoder.transformer.norm."),
        (r"encoder_to_decoder\.", "decoder.project."),
        (r"mask_token$", "decoder.mask_token"),
    ),
    _BLOCK,
)
CLASSIFIER = NameMap((*_ENCODER, (r"fc_norm\.", "norm."), (r"classifier\.", "head.")), _BLOCK)


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a config.json of transformers says about fastvtp's settings.

    Raises CheckpointError for another activation or for frames that are not square.
    """
    config = checkpoint.config or {}
    found = {ours: config[theirs] for ours, theirs in _SETTINGS.items() if theirs in config}
    found |= {"norm_eps": config.get("layer_norm_eps", _NORM_EPS), "head_norm_eps": _HEAD_NORM_EPS}
    if "image_size" in config:
        size = config["image_size"]
        sides = set(size) if isinstance(size, list) else {size}
        if len(sides) != 1:
            raise CheckpointError(f"{checkpoint.name} was made for frames of {size}, fastvtp takes square ones")
        found["image_size"] = sides.pop()
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise CheckpointError(f"{checkpoint.name} uses {activation} in its MLPs, fastvtp the exact GELU")
    return found


def kinds(
    sizes: Callable[[Shapes, str, Mapping[str, Any]], dict[str, Any]],
    heads: tuple[HeadTable, ...],
    refuses: Callable[[Sequence[str]], str],
) -> tuple[Kind, ...]:
    """transformers' classifiers and pretrained models, with and without the name of the whole model in front.

    sizes, heads, refuses: as of `Kind`, VideoMAE's own; `refuses` is the classifiers'.
    """
    return tuple(
        Kind(
            origin="hf_videomae",
            architecture=architecture,
            marks=(f"{model}embeddings.patch_embeddings.", *marks),
            names=names,
            # a bias of keys is equal for all of them, so that the softmax cancels it
            ignores=(r"\.attention\.attention\.(k_|key\.)bias$",),
            prepare=join_attention,
            settings=settings,
            sizes=sizes,
            heads=heads,
            refuses=refuses if marks else accepted,
        )
        for model in ("videomae.", "")
        for architecture, marks, names in (
            ("video_classifier", ("classifier.",), CLASSIFIER),
            ("videomae", (), PRETRAINING),
        )
    )
