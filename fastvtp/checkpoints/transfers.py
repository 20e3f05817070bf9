"""What a checkpoint of one architecture gives to a model of the same or of another."""

from functools import partial

from fastvtp.checkpoints.image_towers import LEFT_OUT, spatial_encoder
from fastvtp.checkpoints.kinds import Transfer
from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD

_TO_BOTH_TOWERS = (("encoder.blocks.", ("video_encoder.blocks.", "text_encoder.blocks.")),)
_TO_VIDEO_TOWER = (("encoder.blocks.", ("video_encoder.blocks.",)),)
_TEXT_HEADS = ("word_head.", "match_head.")
_TEXT = ("text_embeddings",)
_PROMPTS = ("video_prompts", "image_prompts")
_ABOVE_TOWERS = ("fusion_encoder.", "match_head.", "word_transform.")
_IN_PROMPTER = tuple(f"prompter.{part}" for part in _ABOVE_TOWERS)
_PRETRAINING = ("word_transform.", "entity_head.", "prompter.", *_PROMPTS)
_FUSION = ("video_encoder", "text_embeddings", "text_encoder", "fusion_encoder")
_IMAGE_PARTS = ("weight", "bias", "cls_token", "cls_position", "patch_positions", "blocks", "norm")
_FROM_IMAGES = Transfer(needed=tuple(f"video_encoder.{part}" for part in _IMAGE_PARTS))

_OF_IMAGE_TOWERS = {
    "vit": partial(spatial_encoder, mean=(0.5,) * 3, std=(0.5,) * 3),  # google's, and timm's of augreg
    "clip": partial(spatial_encoder, mean=CLIP_MEAN, std=CLIP_STD),
}
_SPATIAL = ("weight", "bias", "spatial_positions", "spatial")
_ABOVE_TOKENS = ("auxiliary", "pooler", "text_encoder", "contrast")
_OF_STUDENTS = ("local_decoder.", "global_decoder.", "teacher.")
# where the encoder lies in VideoPrism's models
_PRISM = {"videoprism": "", "video_text_prism": "video_encoder.", "prism_classifier": "encoder."}

# (architecture of the checkpoint, of the model)
TRANSFERS: dict[tuple[str, str], Transfer] = {
    **{(name, name): Transfer() for name in ("simvtp", "videomae", "video_classifier", "dual_encoder", "video_qa")},
    # the released SimVTP has neither projections nor a temperature to learn
    ("simvtp", "simvtp"): Transfer(fresh=("contrast",)),
    ("videomae", "video_classifier"): Transfer(optional=("decoder.", "encoder.norm."), fresh=("norm", "head")),
    ("videomae", "simvtp"): Transfer(fresh=("text_embeddings", "word_head", "match_head", "contrast")),
    ("videomae", "dual_encoder"): Transfer(
        _TO_VIDEO_TOWER,
        optional=("decoder.", "encoder.norm."),
        fresh=("text_embeddings", "text_encoder", "video_norm", "text_norm", "contrast"),
    ),
    ("videomae", "video_qa"): Transfer(optional=("decoder.",), fresh=("text_embeddings", "head")),
    ("simvtp", "videomae"): Transfer(optional=("text_embeddings.", *_TEXT_HEADS, "contrast.")),
    ("simvtp", "video_classifier"): Transfer(
        optional=("decoder.", "encoder.norm.", "text_embeddings.", *_TEXT_HEADS, "contrast."), fresh=("norm", "head")
    ),
    ("simvtp", "dual_encoder"): Transfer(
        _TO_BOTH_TOWERS,
        optional=("decoder.", "encoder.norm.", *_TEXT_HEADS, "contrast."),
        fresh=("video_norm", "text_norm", "contrast"),
    ),
    ("simvtp", "video_qa"): Transfer(optional=("decoder.", *_TEXT_HEADS, "contrast."), fresh=("head",)),
    ("alpro", "alpro"): Transfer(optional=_IN_PROMPTER, fresh=("prompter", *_PROMPTS)),
    ("alpro", "alpro_prompter"): Transfer((("prompter.", ("",)), ("", ())), optional=_IN_PROMPTER),
    ("alpro", "alpro_retrieval"): Transfer(optional=_PRETRAINING),
    ("alpro", "alpro_qa"): Transfer(optional=_PRETRAINING, fresh=("classifier",)),
    ("alpro_prompter", "alpro_prompter"): Transfer(optional=(*_ABOVE_TOWERS, *_PROMPTS)),
    ("alpro_prompter", "alpro"): Transfer(
        optional=(*_ABOVE_TOWERS, *_PROMPTS),
        fresh=("fusion_encoder", "match_head", "word_transform", "entity_head", "prompter", *_PROMPTS),
    ),
    ("alpro_retrieval", "alpro_prompter"): Transfer(optional=_ABOVE_TOWERS),
    ("alpro_retrieval", "alpro_retrieval"): Transfer(optional=("word_transform.",)),
    ("alpro_retrieval", "alpro_qa"): Transfer(optional=("word_transform.",), fresh=("classifier",)),
    ("alpro_retrieval", "alpro"): Transfer(fresh=("word_transform", "entity_head", "prompter", *_PROMPTS)),
    # LAVIS keeps of a model that answers only what answers
    ("alpro_qa", "alpro_qa"): Transfer(optional=("word_transform.",), needed=(*_FUSION, "classifier")),
    **{("bert", name): Transfer(needed=_TEXT) for name in ("simvtp", "dual_encoder", "video_qa")},
    ("bert", "alpro_prompter"): Transfer(needed=(*_TEXT, "text_encoder")),
    **{
        ("bert", name): Transfer(needed=(*_TEXT, "text_encoder", "fusion_encoder"))
        for name in ("alpro", "alpro_retrieval", "alpro_qa")
    },
    **{("vit", name): _FROM_IMAGES for name in ("alpro", "alpro_prompter", "alpro_retrieval", "alpro_qa")},
    **{(name, name): Transfer() for name in ("videoprism", "prism_classifier")},
    # released models have no temperature, and transformers' video tower alone no text
    ("video_text_prism", "video_text_prism"): Transfer(fresh=("contrast", "text_encoder")),
    ("video_text_prism", "videoprism"): Transfer(
        (("video_encoder.", ("",)),), optional=tuple(f"{part}." for part in _ABOVE_TOKENS)
    ),
    # its pooler is four times as wide
    ("video_text_prism", "prism_classifier"): Transfer(
        (("video_encoder.", ("encoder.",)), ("pooler.", ())),
        optional=("auxiliary.", "text_encoder.", "contrast."),
        fresh=("pooler", "head"),
    ),
    ("videoprism", "video_text_prism"): Transfer((("", ("video_encoder.",)),), fresh=_ABOVE_TOKENS),
    ("videoprism", "prism_classifier"): Transfer((("", ("encoder.",)),), fresh=("pooler", "head")),
    ("prism_classifier", "videoprism"): Transfer((("encoder.", ("",)),), optional=("pooler.", "head.")),
    ("prism_classifier", "video_text_prism"): Transfer(
        (("encoder.", ("video_encoder.",)), ("pooler.", ())), optional=("head.",), fresh=_ABOVE_TOKENS
    ),
    **{(name, name): Transfer() for name in ("prism_student", "prism_teacher")},
    ("video_text_prism", "prism_teacher"): Transfer(optional=("text_encoder.", "contrast.")),
    ("prism_student", "prism_teacher"): Transfer((("teacher.", ("",)), ("", ()))),
    ("prism_student", "videoprism"): Transfer((("encoder.", ("",)),), optional=_OF_STUDENTS),
    ("prism_student", "prism_classifier"): Transfer(optional=_OF_STUDENTS, fresh=("pooler", "head")),
    ("prism_student", "video_text_prism"): Transfer(
        (("encoder.", ("video_encoder.",)),), optional=_OF_STUDENTS, fresh=_ABOVE_TOKENS
    ),
    ("prism_text", "video_text_prism"): Transfer(needed=("text_encoder",)),
    **{
        (tower, name): Transfer(
            (("video_encoder.", (stem,)),),
            optional=LEFT_OUT,
            needed=tuple(f"{stem}{part}" for part in _SPATIAL),
            adapt=adapt,
        )
        for tower, adapt in _OF_IMAGE_TOWERS.items()
        for name, stem in _PRISM.items()
    },
}
