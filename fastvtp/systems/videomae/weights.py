"""Names of the released VideoMAE checkpoints -> fastvtp's."""

from fastvtp.checkpoints.names import NameMap

LAYER_SCALE = ((r"gamma_([12])$", r"residual\1.gamma"),)

PRETRAINING = NameMap(
    (
        (r"encoder\.patch_embed\.proj\.", "video_embeddings."),
        (r"decoder\.(blocks|norm)\.", r"decoder.transformer.\1."),
        (r"encoder_to_decoder\.", "decoder.project."),
        (r"mask_token$", "decoder.mask_token"),
    ),
    LAYER_SCALE,
)
CLASSIFIER = NameMap(
    (
        (r"patch_embed\.proj\.", "video_embeddings."),
        (r"(blocks|norm)\.", r"encoder.\1."),
        (r"fc_norm\.", "norm."),
    ),
    LAYER_SCALE,
)
