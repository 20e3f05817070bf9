"""Where a checkpoint comes from, and which of fastvtp's architectures it is one of."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastvtp.checkpoints import bert, image_towers
from fastvtp.checkpoints.image_towers import (
    VIT_UNUSED,
    prepare_timm,
    prepare_vit,
    vit_names,
    vit_settings,
)
from fastvtp.checkpoints.names import join_attention
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.errors import CheckpointError, unknown_name
from fastvtp.systems.alpro import weights as alpro
from fastvtp.systems.simvtp import weights as simvtp
from fastvtp.systems.videomae import hf_weights as huggingface
from fastvtp.systems.videomae import weights as videomae
from fastvtp.systems.videoprism import hf_weights as hf_videoprism
from fastvtp.systems.videoprism import weights as videoprism


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    origin: whose names it bears. architecture: fastvtp's, or "bert", "vit", "clip" or "prism_text", which fill a part
    of one. marks: prefixes of which it has all. names: its names -> fastvtp's. unused: expressions for entries that no
    model here has a use for. prepare: done to the tensors first. note: what to say when it is loaded.
    """

    origin: str
    architecture: str
    marks: tuple[str, ...]
    names: Callable[[str], str] = str
    unused: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    note: str = ""

    def leaves(self, name: str) -> bool:
        """Whether no model here has a use for an entry."""
        return any(re.search(pattern, name) for pattern in self.unused)

    def settings(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What its config.json, if it has one, says about fastvtp's settings."""
        config = checkpoint.config or {}
        if self.origin == "hf_videomae":
            return huggingface.settings(config, checkpoint.name)
        if self.origin == "bert":
            return bert.settings(config, checkpoint.name)
        if self.origin == "vit":
            return vit_settings(config)
        if self.origin == "clip":
            return vit_settings(config.get("vision_config", config))
        if self.origin == "hf_videoprism":
            return hf_videoprism.settings(config, checkpoint.name)
        if self.origin == "videoprism":
            return videoprism.settings(checkpoint.weights)
        own = config.get("config")
        return own if self.origin == "fastvtp" and isinstance(own, dict) else {}


_POSITION_IDS = r"embeddings\.position_ids$"  # a buffer of old versions of transformers

# of two whose marks are all there, the first is meant
KINDS = (
    Kind("fastvtp", "simvtp", ("video_embeddings.weight", "word_head.")),
    Kind("fastvtp", "dual_encoder", ("video_embeddings.weight", "video_encoder.")),
    Kind("fastvtp", "videomae", ("video_embeddings.weight", "decoder.project.")),
    Kind("fastvtp", "video_qa", ("video_embeddings.weight", "head.1.")),
    Kind("fastvtp", "video_classifier", ("video_embeddings.weight",)),
    Kind("fastvtp", "video_text_prism", ("video_encoder.spatial_positions", "text_encoder.cls_token")),
    Kind("fastvtp", "prism_student", ("encoder.spatial_positions", "teacher.")),
    Kind("fastvtp", "prism_teacher", ("video_encoder.spatial_positions", "pooler.")),
    Kind("fastvtp", "prism_classifier", ("encoder.spatial_positions", "head.")),
    Kind("fastvtp", "videoprism", ("spatial_positions",)),
    Kind("fastvtp", "alpro", ("video_encoder.cls_token", "entity_head.")),
    Kind("fastvtp", "alpro_qa", ("video_encoder.cls_token", "classifier.")),
    Kind("fastvtp", "alpro_retrieval", ("video_encoder.cls_token", "match_head.")),
    Kind("fastvtp", "alpro_prompter", ("video_encoder.cls_token", "text_projection.")),
    # a prompter that was trained alone and kept no prompts has all that retrieval has
    *(
        Kind("alpro", architecture, ("visual_encoder.", "text_encoder.", *marks), alpro.names, alpro.UNUSED,
             prepare_timm)
        for architecture, *marks in (
            ("alpro", "mpm_head."), ("alpro_qa", "classifier."), ("alpro_prompter", "video_prompt_feat"),
            ("alpro_retrieval",),
        )
    ),
    Kind(
        "simvtp", "dual_encoder", ("video_encoder.patch_embed.", "text_encoder."), simvtp.DUAL_ENCODER,
        (r"^video_encoder\.text_embeddings\.", r"^text_encoder\.patch_embed\.", _POSITION_IDS),
    ),
    Kind("simvtp", "simvtp", ("encoder.patch_embed.", "text_embeddings."), simvtp.PRETRAINING, (_POSITION_IDS,)),
    Kind("videomae", "videomae", ("encoder.patch_embed.",), videomae.PRETRAINING),
    *(
        Kind("vit", "vit", (f"{stem}cls_token", patches), vit_names, VIT_UNUSED, prepare_vit)
        for stem, patches in (
            ("", "patch_embed."), ("vit.embeddings.", "vit.embeddings."), ("embeddings.", "embeddings.patch_")
        )
    ),
    Kind("videomae", "video_classifier", ("patch_embed.",), videomae.CLASSIFIER),
    *(
        Kind(
            "hf_videomae", architecture, (f"{model}embeddings.patch_embeddings.", *marks), names,
            # equal for all keys, so that the softmax cancels it
            (r"\.attention\.attention\.(k_|key\.)bias$",), join_attention,
        )
        for model in ("videomae.", "")
        for architecture, marks, names in (
            ("video_classifier", ("classifier.",), huggingface.CLASSIFIER), ("videomae", (), huggingface.PRETRAINING)
        )
    ),
    *(
        Kind("videoprism", architecture, tuple(f"{root}{mark}" for mark in marks), prepare=videoprism.prepare)
        for root in ("params/", "")
        for architecture, *marks in (
            ("video_text_prism", "vision_encoder/", "text_encoder/"), ("prism_classifier", "encoder/"),
            ("videoprism", "patch_projection/"), ("prism_text", "text_encoder/"),
        )
    ),
    *(
        Kind("hf_videoprism", architecture, tuple(marks), names, hf_videoprism.UNUSED, hf_videoprism.prepare, note)
        for architecture, names, note, *marks in (
            ("video_text_prism", hf_videoprism.VIDEO_TEXT, hf_videoprism.NOTE, "video_model.", "text_model."),
            ("prism_classifier", hf_videoprism.CLASSIFIER, hf_videoprism.CLASSIFIER_NOTE, "vision_model.spatial_",
             "classifier."),
            ("video_text_prism", hf_videoprism.VIDEO_TEXT, "", "vision_model.spatial_", "head."),
            ("videoprism", hf_videoprism.VISION, "", "spatial_embeddings."),
            ("prism_text", hf_videoprism.TEXT, hf_videoprism.NOTE, "embeddings.cls_emb", "embeddings.token_embedding."),
        )
    ),
    *(
        Kind("clip", "clip", (f"{model}embeddings.class_embedding",), vit_names, image_towers.CLIP_UNUSED,
             image_towers.prepare_clip)
        for model in ("vision_model.", "")
    ),
    *(
        Kind("bert", "bert", (f"{model}embeddings.word_embeddings.",), bert.NAMES, ("",), join_attention)
        for model in ("bert.", "")
    ),
)  # fmt: skip
ORIGINS = tuple(dict.fromkeys(kind.origin for kind in KINDS))


def recognise(checkpoint: Checkpoint, origin: str | None = None) -> Kind:
    """The kind of `checkpoint`, among those of `origin` where that is given. Raises UserError with one line."""
    if origin is not None and origin not in ORIGINS:
        raise unknown_name("origin", origin, ORIGINS)
    for kind in KINDS:
        if origin in (None, kind.origin) and all(
            any(name.startswith(mark) for name in checkpoint.weights) for mark in kind.marks
        ):
            return kind
    raise CheckpointError(
        f"{checkpoint.name} is no checkpoint of {origin or ', '.join(ORIGINS)}: "
        f"its {len(checkpoint.weights)} tensors begin with {', '.join(sorted(checkpoint.weights)[:3])}"
    )


@dataclass(frozen=True)
class Transfer:
    """moves: prefix of a checkpoint's name -> prefixes it becomes. optional: prefixes of entries that may be left
    over. fresh: parts of the model that such a checkpoint may lack. needed: parts that it must have; empty: all
    others. adapt: done to the prepared tensors first."""

    moves: tuple[tuple[str, tuple[str, ...]], ...] = ()
    optional: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict

    def targets(self, name: str) -> list[str]:
        """Names in the model of a checkpoint's entry."""
        for prefix, replacements in self.moves:
            if name.startswith(prefix):
                return [replacement + name.removeprefix(prefix) for replacement in replacements]
        return [name]
