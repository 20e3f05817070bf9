"""In every model `embed_*` gives vectors as they are, and `encode_*` the same at unit length."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from fastvtp.architecture import architectures, build_model
from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig

SIZES = {"num_frames": 2, "image_size": 16, "width": 32, "depth": 1, "num_heads": 2}
TEXT = {"vocab_size": 200, "max_text_length": 12}
TUBELETS = {"tubelet": (2, 8, 8), "pad_text": False, "projection_dim": 8}
ALPRO = {"patch_size": 8, "text_depth": 1, "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 64}
PRISM = {"patch_size": 8, "temporal_depth": 1, "mlp_hidden": 64, "auxiliary_depth": 1, "text_depth": 1}
DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_num_heads": 2, "video_mask_ratio": 0.5}
CONFIGS = [
    SimVTPConfig(**SIZES, **TEXT, **TUBELETS, **DECODER),
    DualEncoderConfig(**SIZES, **TEXT, **TUBELETS),
    AlproConfig(**SIZES, **TEXT, **ALPRO, num_entities=3),
    AlproPrompterConfig(**SIZES, **TEXT, **ALPRO),
    AlproRetrievalConfig(**SIZES, **TEXT, **ALPRO),
    VideoTextPrismConfig(**SIZES, **TEXT, **PRISM),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_encode_is_embed_at_unit_length(config):
    torch.manual_seed(0)
    model = build_model(config).eval()
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


def test_the_record_says_which_models_compare_clips_with_texts():
    found = architectures().values()
    for each in found:
        if each.has_embeddings:
            assert {"encode_video", "encode_text"} <= set(dir(each.model)), each.name
    assert "alpro_qa" not in {each.name for each in found if each.has_embeddings}  # its projections are not trained
    assert all(each.has_embeddings for each in found if each.scored_by in ("retrieval", "matching"))


@pytest.mark.parametrize("config", [*CONFIGS[1:], replace(CONFIGS[1], pad_text=True)], ids=lambda x: type(x).__name__)
def test_compiled_texts_of_a_length_read_from_a_tensor(config):
    torch.manual_seed(0)
    model = build_model(config).eval()

    def embed(input_ids, cu_seqlens):
        return model.embed_text(input_ids, cu_seqlens, int(cu_seqlens.diff().max()))

    texts = torch.randint(110, 200, (9,)), torch.tensor([0, 4, 9], dtype=torch.int32)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(embed, fullgraph=True, backend="eager")(*texts)
        torch.testing.assert_close(found, embed(*texts))
