import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fastvtp
from fastvtp.modules.layers import Residual
from fastvtp.modules.packing import Packing
from fastvtp.systems.videomae.model import VideoMAE, VideoMAEConfig

SMALL = {"image_size": 32, "num_frames": 4, "tubelet": (2, 8, 8), "depth": 2, "video_mask_ratio": 0.75}
VIDEO = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_model(**overrides) -> VideoMAE:
    torch.manual_seed(0)
    return fastvtp.create_model("videomae_tiny", **{**SMALL, **overrides}).eval()


@pytest.mark.parametrize("decoder", ["joint", "cross"])
@pytest.mark.parametrize("prediction", ["all", "running_cell", "random"])
def test_predicted_tokens_are_masked_ones_and_the_loss_trains(decoder, prediction):
    model = make_model(decoder=decoder, prediction=prediction).train()
    plan = model.plan(torch.tensor([5, 9, 2]), seed=3, step=7)
    every = make_model().plan(torch.tensor([5, 9, 2]), seed=3, step=7)
    assert torch.equal(plan.visible, every.visible)
    share = 1.0 if prediction == "all" else 0.5
    assert plan.predicted.shape[1] == share * every.predicted.shape[1]
    for row, masked in zip(plan.predicted.tolist(), every.predicted.tolist(), strict=True):
        assert row == sorted(set(row) & set(masked))
    optimizer, first = torch.optim.AdamW(model.parameters(), lr=2e-3), None
    for _ in range(15):
        output = model(VIDEO, plan)
        first = output.loss.item() if first is None else first
        output.loss.backward()
        optimizer.step()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.zero_grad()
    assert output.loss.item() < first
    assert output.pixel_prediction.shape == (*plan.predicted.shape, 3 * 2 * 8 * 8)


def test_predictions_of_the_random_kind_follow_step_and_sample():
    model = make_model(prediction="random")
    first = model.plan(torch.tensor([5, 9]), seed=3, step=7).predicted
    assert torch.equal(first[1:], model.plan(torch.tensor([9]), seed=3, step=7).predicted)
    assert not torch.equal(first, model.plan(torch.tensor([5, 9]), seed=3, step=8).predicted)


def test_the_cross_decoder_sees_visible_tokens_and_no_other_predicted_one():
    model = make_model(decoder="cross")
    plan = model.plan(torch.arange(3), seed=0, step=0)
    visible = model.video_tokens(VIDEO, plan.visible)
    whole = model.decoder(visible, plan.visible, plan.predicted)
    torch.testing.assert_close(model.decoder(visible, plan.visible, plan.predicted[:, 3:5]), whole[:, 3:5])
    changed = visible.clone()
    changed[1, 0] += 1
    after = model.decoder(changed, plan.visible, plan.predicted)
    assert torch.equal(after[0], whole[0])
    assert not torch.allclose(after[1], whole[1])


def test_unseen_tubelets_never_reach_the_encoder():
    model = make_model()
    plan = model.plan(torch.arange(3), seed=0, step=0)
    repainted = VIDEO.clone()
    for clip, tokens in enumerate(plan.predicted.tolist()):
        for token in tokens:
            t, y, x = token // 16, token % 16 // 4, token % 4
            repainted[clip, 2 * t : 2 * t + 2, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 7
    assert torch.equal(model(VIDEO, plan).pixel_prediction, model(repainted, plan).pixel_prediction)


def test_plain_pixels_as_target():
    plain, normalized = make_model(normalize_target=False), make_model()
    plan = plain.plan(torch.arange(3), seed=0, step=0)
    with torch.no_grad():
        plain.decoder.head.weight.zero_()
    # an all-zero prediction in [0, 1]: the mean square of the pixels themselves
    hidden = torch.ones(3, 32, dtype=torch.bool).scatter(1, plan.visible.long(), False)
    cells = VIDEO.view(3, 2, 2, 4, 8, 4, 8, 3).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(3, 32, -1)
    expected = (cells[hidden].double() / 255).square().mean().item()
    assert plain(VIDEO, plan).loss.item() == pytest.approx(expected, rel=1e-5)
    assert normalized(VIDEO, plan).loss.item() != pytest.approx(expected, rel=1e-2)


def test_sizes_are_the_papers():
    for name, width, depth, heads in (
        ("small", 384, 12, 6),
        ("base", 768, 12, 12),
        ("large", 1024, 24, 16),
        ("huge", 1280, 32, 16),
    ):
        with torch.device("meta"):
            model = VideoMAE(fastvtp.systems.catalogue.model_config(f"videomae_{name}"))
        encoder = sum(p.numel() for p in model.encoder.parameters())
        assert encoder == depth * (12 * width**2 + 12 * width) + 2 * width
        assert model.config.num_heads == heads


def test_layer_scale_and_drop_path():
    packing = Packing(torch.tensor([0, 2, 5, 5, 6]).int(), 3)
    branch = torch.ones(6, 4)
    scaled = Residual(4, layer_scale=0.1)
    torch.testing.assert_close(scaled(branch, packing), 0.1 * branch)
    dropping = Residual(4, drop_path=0.25).train()
    torch.manual_seed(0)
    seen = torch.stack([dropping(branch, packing)[:, 0] for _ in range(2000)])
    assert seen.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    # a sequence is dropped or kept as a whole, independently of the others
    assert (seen[:, 0] == seen[:, 1]).all()
    assert (seen[:, 2] == seen[:, 4]).all()
    assert 0.1 < ((seen[:, 0] == 0) != (seen[:, 2] == 0)).float().mean() < 0.6
    assert seen.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(dropping.eval()(branch, packing), branch)
    model = make_model(drop_path=0.3, layer_scale=1e-4)
    assert [block.residual1.drop_path for block in model.encoder.blocks] == [0.0, 0.3]
    assert model.decoder.transformer.blocks[0].residual2.gamma.unique().tolist() == [pytest.approx(1e-4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "none"}, "decoder must be 'joint' or 'cross', got 'none'"),
        ({"prediction": "half"}, "prediction must be one of 'all', 'running_cell', 'random', got 'half'"),
        ({"prediction_ratio": 0.0}, r"prediction_ratio must be in \(0, 1\]"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"num_heads": 7}, "num_heads 7 does not divide the width 768"),
        ({"layer_scale": -1.0}, "layer_scale must be finite and not negative"),
        ({"num_frames": 15}, "num_frames 15 is not a multiple of the tubelet's 2"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        VideoMAEConfig(**change)


@pytest.mark.parametrize("prediction", ["all", "running_cell", "random"])
def test_one_graph_serves_all_steps(prediction):
    torch._dynamo.reset()
    model = make_model(prediction=prediction, depth=1, decoder_depth=1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(6):
        plan = model.plan(torch.arange(3) + step, seed=3, step=step)
        loss = compiled(VIDEO, plan).loss
        loss.backward()
        torch.testing.assert_close(loss, model(VIDEO, plan).loss)
    assert counter.frame_count == 1
