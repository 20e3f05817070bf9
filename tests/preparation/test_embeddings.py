"""What models say of clips before they are written, against the models called by hand."""

import shutil

import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.retrieval import encode_retrieval
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.model_folder import write_model_folder
from fastvtp.preparation.reading import read_items
from fastvtp.systems.catalogue import build_model, open_model
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from tests.frozen.towers import make_tower_model
from tests.preparation.sets import captioned, described, quietly, run


def opened(folder):
    return open_model(folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that compares clips with texts, and one that has a tower alone."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"num_frames": 4, "image_size": 32, "width": 32, "depth": 1, "num_heads": 2, "tubelet": (2, 8, 8)}
    torch.manual_seed(0)
    dual = build_model(DualEncoderConfig(**sizes, max_text_length=16, vocab_size=300))
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_model_folder(folder / "dual", dual, "dual_encoder")
    CaptionTokenizer.train([f"video number {n}" for n in range(20)], 300).save(folder / "dual" / "tokenizer.json")
    write_model_folder(folder / "tower", make_tower_model("videomae"), "videomae")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six videos, the fifth a copy of the second."""
    folder = tmp_path_factory.mktemp("videos")
    listed = captioned(folder, 6)
    shutil.copy(folder / "1.mp4", folder / "4.mp4")
    return listed


def test_texts_that_do_not_fit_are_rejected(tmp_path, models, source):
    """The cosines are those of the whole set encoded at once, and what is below the bound goes."""
    model = opened(models / "dual")
    records = [VideoRecord(item.id, item.video, item.captions) for item in read_items(source)]
    with evaluation_loader(model, records, EvaluationProtocol(num_workers=0), dealt=False) as loader:
        found = encode_retrieval(model.model, loader, device="cpu", progress=False)
    cosines = (found.text * found.video).sum(dim=1).tolist()
    bound = sorted(cosines)[2] - 1e-4
    report = run(
        source, tmp_path / "out", 4, quietly(open_model=opened), similarity=str(models / "dual"), min_similarity=bound
    )
    assert report is not None
    gone = {f"v{number}" for number, cosine in enumerate(cosines) if cosine < bound}
    assert {each["id"] for each in report["rejected"]["clips"]} == gone
    assert {each["rule"] for each in report["rejected"]["clips"]} == {"similarity"}
    kept = [told for shard in (0, 1) for told in described(tmp_path / "out" / f"00000{shard}.tar")]
    for told in kept:
        assert told["scores"]["similarity"] == pytest.approx(cosines[int(told["id"][1:])], abs=2e-4)
    assert len(kept) + len(gone) == 6


@pytest.mark.parametrize("name", ["dual", "tower"])
def test_duplicates_by_embeddings(tmp_path, models, source, name):
    report = run(
        source, tmp_path / "out", 4, quietly(open_model=opened),
        duplicates="embeddings", model=str(models / name), duplicate_cosine=0.99999,
    )  # fmt: skip
    assert report is not None
    (rejected,) = report["rejected"]["clips"]
    assert (rejected["id"], rejected["rule"]) == ("v4", "duplicate")
    assert rejected["reason"].startswith("its embedding is that of v1 (cosine 1.0000)")


def test_a_model_without_texts_compares_nothing(tmp_path, models, source):
    with pytest.raises(UserError, match=r"similarity needs a model that compares clips with texts, not videomae"):
        run(source, tmp_path / "out", 4, quietly(open_model=opened), similarity=str(models / "tower"))
