"""In every model `embed_*` gives vectors as they are, and `encode_*` the same at unit length."""

import pytest
import torch
from torch.nn.functional import normalize

from fastvtp.systems.catalogue import ARCHITECTURES, build_model

SIZES = {"num_frames": 2, "image_size": 16, "width": 32, "depth": 1, "num_heads": 2}
TEXT = {"vocab_size": 200, "max_text_length": 12}
TUBELETS = {"tubelet": (2, 8, 8), "pad_text": False, "projection_dim": 8}
ALPRO = {"patch_size": 8, "text_depth": 1, "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 64}
PRISM = {"patch_size": 8, "temporal_depth": 1, "mlp_hidden": 64, "auxiliary_depth": 1, "text_depth": 1}
MODELS = {
    "simvtp": TUBELETS | {"decoder_width": 32, "decoder_depth": 1, "decoder_num_heads": 2, "video_mask_ratio": 0.5},
    "dual_encoder": TUBELETS,
    "alpro": ALPRO | {"num_entities": 3},
    "alpro_prompter": ALPRO,
    "alpro_retrieval": ALPRO,
    "video_text_prism": PRISM,
}


@pytest.mark.parametrize("architecture", MODELS)
def test_encode_is_embed_at_unit_length(architecture):
    torch.manual_seed(0)
    model = build_model(ARCHITECTURES[architecture][0](**SIZES, **TEXT, **MODELS[architecture])).eval()
    video = torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8)
    texts = torch.randint(110, 200, (9,)), torch.tensor([0, 4, 9], dtype=torch.int32), 5
    for embed, encode, given in (
        (model.embed_video, model.encode_video, (video,)),
        (model.embed_text, model.encode_text, texts),
    ):
        with torch.no_grad():
            raw, unit = embed(*given), encode(*given)
        torch.testing.assert_close(unit, normalize(raw.float(), dim=-1))
        assert (raw.norm(dim=-1) - 1).abs().min() > 1e-3, "an embedding has unit length already"
