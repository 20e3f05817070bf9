"""Names of the released SimVTP checkpoints -> fastvtp's."""

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
