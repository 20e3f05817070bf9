import pytest
import torch
from torch.nn.functional import layer_norm, multi_head_attention_forward

from fastvtp.frozen.probes import (
    ProbeConfig,
    build_probe,
    probe_loss,
)

SIZES = {"width": 32, "num_outputs": 3, "num_heads": 2, "head_dim": 8}


def make(**settings):
    torch.manual_seed(0)
    return build_probe(ProbeConfig(**SIZES, **settings)).eval()


def features(clips=4, layers=1, tokens=10, seed=0):
    return torch.randn(clips, layers, tokens, 32, generator=torch.Generator().manual_seed(seed))


def test_attentive_probe_is_multi_head_attention_of_one_token():
    """Against torch's own, whose heads must fill the width: 2 heads of 16."""
    torch.manual_seed(0)
    probe = build_probe(ProbeConfig(width=32, num_outputs=3, num_heads=2, head_dim=16)).eval()
    for parameter in probe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_BKLD, pooler = features(), probe.pooler
    tokens = layer_norm(x_BKLD[:, -1], (32,), probe.norm.weight, probe.norm.bias, 1e-6).transpose(0, 1)
    pooled, _ = multi_head_attention_forward(
        pooler.queries[:, None].expand(1, 4, 32),
        tokens,
        tokens,
        32,
        2,
        None,
        torch.cat([part.bias for part in (pooler.query, pooler.key, pooler.value)]),
        None,
        None,
        False,
        0.0,
        pooler.proj.weight,
        pooler.proj.bias,
        training=False,
        use_separate_proj_weight=True,
        q_proj_weight=pooler.query.weight,
        k_proj_weight=pooler.key.weight,
        v_proj_weight=pooler.value.weight,
    )
    torch.testing.assert_close(probe.pool(x_BKLD), pooled[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe(x_BKLD), probe.head(pooled[0]), rtol=1e-4, atol=1e-5)


def test_linear_probe_reads_the_mean_of_the_last_layer():
    probe, x_BKLD = make(kind="linear", num_layers=2), features(layers=2)
    torch.testing.assert_close(probe(x_BKLD), probe.head(x_BKLD[:, 1].mean(1)))


def test_mlap_reads_every_layer_in_turn():
    probe, x_BKLD = make(kind="mlap", num_layers=3), features(layers=3)
    x_BKLD.requires_grad_()
    probe(x_BKLD).square().sum().backward()
    assert (x_BKLD.grad.abs().amax((0, 2, 3)) > 0).all()
    by_hand = probe.token
    for norm, block, memory in zip(probe.norms, probe.blocks, x_BKLD[1], strict=True):
        query, (key, value) = block.attn.query(block.norm1(by_hand)), block.attn.key_value(norm(memory)).chunk(2, -1)
        heads = [
            (q @ k.T / 8**0.5).softmax(-1) @ v
            for q, k, v in zip(query.split(8, 1), key.split(8, 1), value.split(8, 1), strict=True)
        ]
        by_hand = by_hand + block.attn.proj(torch.cat(heads, 1))
        by_hand = by_hand + block.mlp(block.norm2(by_hand))
    torch.testing.assert_close(probe(x_BKLD)[1], probe.head(probe.last_norm(by_hand))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["attentive", "linear", "mlap"])
def test_dropout_acts_in_training_alone_and_every_parameter_learns(kind):
    probe, x_BKLD = make(kind=kind, num_layers=2), features(layers=2)
    torch.testing.assert_close(probe(x_BKLD), probe(x_BKLD))
    probe.train()
    assert not torch.equal(probe(x_BKLD), probe(x_BKLD))
    probe(x_BKLD).square().sum().backward()
    assert all(parameter.grad is not None for parameter in probe.parameters())


def test_clips_do_not_see_each_other():
    for kind in ("attentive", "linear", "mlap"):
        probe, x_BKLD = make(kind=kind), features()
        torch.testing.assert_close(probe(x_BKLD)[1:2], probe(x_BKLD[1:2]))


def test_losses_against_their_definitions():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
    one = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    soft = one * 0.9 + 0.1 / 3
    expected = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(probe_loss(multi_label=False, label_smoothing=0.1)(logits, one), expected)
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    soft = several * 0.8 + 0.1
    expected = -(soft * logits.sigmoid().log() + (1 - soft) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(probe_loss(multi_label=True, label_smoothing=0.2)(logits, several), expected)


def test_wrong_shapes_and_settings_are_one_line():
    probe = make(num_layers=2)
    with pytest.raises(ValueError, match=r"features must be \[B, 2, L, 32\], got \[4, 1, 10, 32\]"):
        probe(features())
    with pytest.raises(ValueError, match="kind must be one of 'attentive', 'linear', 'mlap', got 'atentive'"):
        make(kind="atentive")
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        make(dropout=1)
