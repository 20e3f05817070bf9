"""Names of ALPRO's checkpoints, its authors' and LAVIS's, -> fastvtp's."""

from fastvtp.checkpoints import bert
from fastvtp.checkpoints.names import NameMap

_TEXT, _PROMPTER = "text_encoder.", "prompter."
_OWN = NameMap(
    (
        (r"visual_encoder\.model\.patch_embed\.proj\.", "video_encoder."),
        (r"visual_encoder\.model\.", "video_encoder."),
        (r"vision_proj\.", "video_projection."),
        (r"text_proj\.", "text_projection."),
        (r"temp$", "temperature"),
        (r"itm_head\.", "match_head."),
        (r"mpm_head\.", "entity_head."),
        (r"(video|image)_prompt_feat$", r"\1_prompts"),
    ),
    ((r"temporal_norm1\.", "temporal_norm."),),
)

# the tied word head, buffers, the unused classifier of Kinetics, and what the softmax cancels
UNUSED = (
    r"cls\.predictions\.decoder\.(weight|bias)$",
    r"embeddings\.position_ids$",
    r"text_encoder\.(bert\.)?pooler\.",
    r"visual_encoder\.model\.head\.",
    r"attention\.self\.key\.bias$",
    r"\.k_bias$",
)


def names(name: str) -> str:
    """Our name of an entry after `prepare`. The features of prompts are the student's, not the prompter's."""
    inner = name.removeprefix(_PROMPTER)
    ours = bert.NAMES(inner.removeprefix(_TEXT)) if inner.startswith(_TEXT) else _OWN(inner)
    return ours if inner == name or ours.endswith("_prompts") else _PROMPTER + ours
