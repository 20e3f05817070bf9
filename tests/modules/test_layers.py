import pytest
import torch
from torch._functorch.aot_autograd import aot_module_simplified

from fastvtp.modules.layers import Transformer, init_linear_xavier
from fastvtp.modules.packing import Packing
from fastvtp.modules.positions import sincos_positions
from fastvtp.modules.rows import Pick, Takers, segment_mean, take_rows


def small_transformer() -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(width=32, depth=2, num_heads=4).double()
    transformer.apply(init_linear_xavier)
    return transformer


def packing(*lengths: int) -> Packing:
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Packing(cu_seqlens, max(lengths))


def test_packed_equals_one_sequence_at_a_time():
    transformer = small_transformer()
    x_ND = torch.randn(12, 32, dtype=torch.float64)
    packed = transformer(x_ND, packing(5, 1, 6))
    alone = [transformer(part, packing(len(part))) for part in x_ND.split([5, 1, 6])]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-12)


def test_a_sequence_is_blind_to_its_neighbours():
    transformer = small_transformer()
    x_ND = torch.randn(9, 32, dtype=torch.float64)
    before = transformer(x_ND, packing(4, 5))
    x_ND[4:] = torch.randn(5, 32, dtype=torch.float64)
    after = transformer(x_ND, packing(4, 5))
    assert torch.equal(before[:4], after[:4])
    assert not torch.allclose(before[4:], after[4:])


def test_attention_matches_torch_multihead_attention():
    """The packed block's attention against torch's own module with the same weights."""
    from fastvtp.modules.attention import Attention

    torch.manual_seed(0)
    ours = Attention(width=24, num_heads=3)
    torch.nn.init.normal_(ours.q_bias)
    torch.nn.init.normal_(ours.v_bias)
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.q_bias, torch.zeros(24), ours.v_bias]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 7, 24)
    expected, _ = theirs(x, x, x)
    torch.testing.assert_close(ours(x.flatten(0, 1), Packing.uniform(2, 7)).view_as(x), expected, rtol=1e-5, atol=1e-6)


def test_width_must_divide_by_heads():
    with pytest.raises(ValueError, match="width 30 is not a multiple of num_heads 4"):
        Transformer(width=30, depth=1, num_heads=4)


def test_segment_mean_and_its_gradient():
    x_ND = torch.randn(6, 3, requires_grad=True)
    mean = segment_mean(x_ND, torch.tensor([0, 2, 2, 6], dtype=torch.int32))
    torch.testing.assert_close(mean[0], x_ND[:2].mean(0))
    torch.testing.assert_close(mean[1], torch.zeros(3))
    torch.testing.assert_close(mean[2], x_ND[2:].mean(0))
    mean.sum().backward()
    assert x_ND.grad is not None
    torch.testing.assert_close(x_ND.grad[:, 0], torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25]))


def test_sincos_positions():
    """Values by hand: column 0 is sin(p), column 1 cos(p), columns 2 and 3 run 10000^(-2/width) as fast."""
    table = sincos_positions(5, 4)
    p = torch.arange(5.0)
    torch.testing.assert_close(table[:, 0], p.sin())
    torch.testing.assert_close(table[:, 1], p.cos())
    torch.testing.assert_close(table[:, 2], (p * 0.01).sin())
    torch.testing.assert_close(table[:, 3], (p * 0.01).cos())


def test_rows_taken_several_times_under_compilation():
    """The sum of their gradients is one op, which no compiler takes apart."""
    rows = torch.tensor([2, 0, 2, 1, 2])
    graphs = []

    def backend(graph, inputs):
        return aot_module_simplified(graph, inputs, fw_compiler=lambda g, _: g.forward, bw_compiler=keep)

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    results = []
    takers = Takers.of(rows, 4)
    for function in (take_rows, torch.compile(take_rows, backend=backend, fullgraph=True)):
        x_ND = torch.arange(8.0).view(4, 2).requires_grad_()
        out = function(x_ND, Pick(rows, takers))
        (out * torch.arange(10.0).view(5, 2)).sum().backward()
        results.append((out, x_ND.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert [node.target for node in graphs[0].graph.nodes if "sum_rows" in str(node.target)]
