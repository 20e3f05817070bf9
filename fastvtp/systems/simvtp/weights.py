"""SimVTP's checkpoints: released names -> fastvtp's, and what its models start from."""

from fastvtp.checkpoints import bert
from fastvtp.checkpoints.heads import HeadTable, by
from fastvtp.checkpoints.kinds import Kind, Transfer, own_kinds
from fastvtp.checkpoints.names import NameMap
from fastvtp.systems.videomae import weights as videomae

PRETRAINING = NameMap(
    (
        *videomae.PRETRAINING.stems,
        (r"text_embeddings\.LayerNorm\.", "text_embeddings.norm."),
        (r"text_cls\.", "word_head."),
        (r"vtm_head\.", "match_head."),
    ),
    videomae.LAYER_SCALE,
)
# each tower was saved as a whole model: the text's with a patch embedding, the video's with word embeddings
DUAL_ENCODER = NameMap(
    (
        (r"video_encoder\.patch_embed\.proj\.", "video_embeddings."),
        (r"text_encoder\.text_embeddings\.LayerNorm\.", "text_embeddings.norm."),
        (r"text_encoder\.text_embeddings\.", "text_embeddings."),
        (r"(video|text)_encoder\.fc_norm\.", r"\1_norm."),
    ),
    videomae.LAYER_SCALE,
)
_POSITION_IDS = r"embeddings\.position_ids$"  # a buffer of old versions of transformers

HEADS = (
    HeadTable("num_heads", by("width", "depth"), videomae.ENCODERS | {(768, 12): (12, "SimVTP base")}),
    HeadTable(
        "decoder_num_heads",
        by("width", "depth", "decoder_width"),
        videomae.DECODERS | {(768, 12, 384): (6, "SimVTP base")},
    ),
)
"""Heads of the size that was released, and of VideoMAE's others, from which the same model can start."""

KINDS = (
    *own_kinds(
        videomae.sizes,
        {
            # it has a VideoMAE's decoder, too
            "simvtp": ("video_embeddings.weight", "decoder.project.", "word_head."),
            "dual_encoder": ("video_embeddings.weight", "video_encoder."),
            "video_qa": ("video_embeddings.weight", "head.1."),
        },
        HEADS,
    ),
    Kind(
        origin="simvtp",
        architecture="dual_encoder",
        marks=("video_encoder.patch_embed.", "text_encoder."),
        names=DUAL_ENCODER,
        ignores=(r"^video_encoder\.text_embeddings\.", r"^text_encoder\.patch_embed\.", _POSITION_IDS),
        sizes=videomae.released_sizes,
        heads=HEADS,
    ),
    Kind(
        origin="simvtp",
        architecture="simvtp",
        marks=("encoder.patch_embed.", "text_embeddings."),
        names=PRETRAINING,
        ignores=(_POSITION_IDS,),
        sizes=videomae.released_sizes,
        heads=HEADS,
    ),
    *bert.KINDS,
)

_ABOVE = ("word_head.", "match_head.", "contrast.")
_TEXT = ("text_embeddings", "word_head", "match_head", "contrast")
_CLASSES = ("head.", ())  # of a classifier
MODEL_SOURCES = {
    # the release has neither projections nor a temperature to learn
    "simvtp": Transfer(fresh=("contrast",)),
    "videomae": Transfer(fresh=(*_TEXT, *videomae.BEHIND_AN_ENCODER)),
    "video_classifier": Transfer((("norm.", ()), _CLASSES), fresh=(*_TEXT, *videomae.BEHIND_AN_ENCODER)),
    "bert": bert.EMBEDDINGS,
}
_VIDEO_BLOCKS = ("encoder.blocks.", ("video_encoder.blocks.",))
_NEW_TOWER = ("text_embeddings", "text_encoder", "video_norm", "text_norm", "contrast")
DUAL_ENCODER_SOURCES = {
    "dual_encoder": Transfer(),
    "videomae": Transfer((_VIDEO_BLOCKS,), optional=("decoder.", "encoder.norm."), fresh=_NEW_TOWER),
    # it normalises the mean of all tokens, as this tower does
    "video_classifier": Transfer(
        (_VIDEO_BLOCKS, ("norm.", ("video_norm.",)), _CLASSES), optional=("encoder.norm.",), fresh=_NEW_TOWER
    ),
    "simvtp": Transfer(
        (("encoder.blocks.", ("video_encoder.blocks.", "text_encoder.blocks.")),),
        optional=("decoder.", "encoder.norm.", *_ABOVE),
        fresh=("video_norm", "text_norm", "contrast"),
    ),
    "bert": bert.EMBEDDINGS,
}
VIDEO_QA_SOURCES = {
    "video_qa": Transfer(),
    "videomae": Transfer(optional=("decoder.",), fresh=("text_embeddings", "encoder.norm", "head")),
    "video_classifier": Transfer((("norm.", ()), _CLASSES), fresh=("text_embeddings", "encoder.norm", "head")),
    "simvtp": Transfer(optional=("decoder.", *_ABOVE), fresh=("head",)),
    "bert": bert.EMBEDDINGS,
}
