"""The decoder's input: order, positions, shuffling, gradients."""

import pytest
import torch

from fastvtp_kernels import assemble_tokens
from fastvtp_kernels.testing import assert_within_tolerance

VISIBLE = torch.tensor([[1, 4], [0, 2], [2, 3]], dtype=torch.int32)
MASKED = torch.tensor([[0, 2, 3], [1, 3, 4], [0, 1, 4]], dtype=torch.int32)


def example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, 7), (7,), (5, 7))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [leaf.requires_grad_() for leaf in leaves]


def row_by_row(leaves, permutation=None):
    visible, mask_token, position = leaves
    clips = []
    for b in range(3):
        rows = [(visible[b, i], position[k]) for i, k in enumerate(VISIBLE[b])]
        rows += [(mask_token, position[k]) for k in MASKED[b]]
        if permutation is not None:
            order = permutation[b] if permutation.ndim == 2 else permutation
            rows = [(rows[source][0], position[place]) for place, source in enumerate(order)]
        clips.append(torch.stack([token + place for token, place in rows]))
    return torch.stack(clips)


PERMUTATIONS = {
    "none": None,
    "one for the batch": torch.tensor([3, 0, 4, 2, 1]),
    "one per clip": torch.tensor([[3, 0, 4, 2, 1], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], dtype=torch.int32),
}


@pytest.mark.parametrize("permutation", PERMUTATIONS.values(), ids=PERMUTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_and_gradients(permutation, dtype):
    def assemble(leaves):
        visible, mask_token, position = leaves
        return assemble_tokens(visible, mask_token, position, VISIBLE, MASKED, permutation=permutation)

    def run(function, leaves):
        output = function(leaves)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
        return output, torch.autograd.grad(output, leaves, weights)

    leaves = example(dtype)
    exact = run(lambda x: row_by_row(x, permutation), [leaf.detach().double().requires_grad_() for leaf in leaves])
    same = run(lambda x: row_by_row(x, permutation), leaves)
    actual = run(assemble, leaves)
    assert_within_tolerance("output", actual[0], same[0], exact[0])
    for name, *gradients in zip(("visible", "mask_token", "position"), actual[1], same[1], exact[1], strict=True):
        assert_within_tolerance(f"grad of {name}", *gradients)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda v, m, p: assemble_tokens(v, m, p, VISIBLE, MASKED), example())


def test_restoring_permutation_gives_raster_order():
    visible, mask_token, position = example()
    order = torch.cat([VISIBLE, MASKED], dim=1).argsort(dim=1)
    restored = assemble_tokens(visible, mask_token, position, VISIBLE, MASKED, permutation=order)
    plain = assemble_tokens(visible, mask_token, position, VISIBLE, MASKED)
    assert torch.equal(restored, torch.stack([clip[o] for clip, o in zip(plain, order, strict=True)]))


def test_mask_token_shape_index_dtype_and_table_dtype_do_not_matter():
    visible, mask_token, position = (x.float() for x in example())
    expected = assemble_tokens(visible, mask_token, position, VISIBLE, MASKED)
    assert torch.equal(
        expected, assemble_tokens(visible, mask_token[None, None], position, VISIBLE.long(), MASKED.long())
    )
    low = assemble_tokens(visible.bfloat16(), mask_token, position, VISIBLE, MASKED)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)


def test_position_gradient_of_a_large_batch_is_summed_in_the_tables_precision():
    """1000 clips of bfloat16 ones: a sum kept in bfloat16 stalls at 256."""
    visible = torch.zeros(1000, 1, 2, dtype=torch.bfloat16)
    position = torch.zeros(2, 2, requires_grad=True)
    index = torch.zeros(1000, 1, dtype=torch.int32)
    assemble_tokens(visible, torch.zeros(2), position, index, index + 1).sum().backward()
    assert position.grad is not None
    assert position.grad.tolist() == [[1000.0, 1000.0]] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_token": torch.ones(1, 7)}, ValueError, r"mask_token has shape \[1, 7\], expected \[7\] or \[1, 1, 7\]"),
        ({"position": torch.ones(1, 5, 7)}, ValueError, r"position has shape \[1, 5, 7\], expected \[tokens, 7\]"),
        ({"visible_index": MASKED}, ValueError, r"visible_index has shape \[3, 3\], expected \[3, 2\]"),
        ({"masked_index": MASKED + 1}, ValueError, r"masked_index holds 1\.\.5, expected token indices in \[0, 5\)"),
        ({"permutation": torch.arange(4)}, ValueError, r"permutation has shape \[4\], expected \[5\]"),
        ({"permutation": torch.zeros(2, 5).int()}, ValueError, r"permutation has shape \[2, 5\], expected \[3, 5\]"),
        (
            {"permutation": torch.arange(5), "position": torch.ones(6, 7)},
            ValueError,
            r"position has shape \[6, 7\], expected \[5, 7\]",
        ),
        ({"visible": torch.ones(3, 2, 7).int()}, TypeError, "visible is torch.int32, expected a floating-point"),
    ],
)
def test_refuses(change, error, message):
    visible, mask_token, position = example()
    arguments = {"visible": visible, "mask_token": mask_token, "position": position}
    with pytest.raises(error, match=message):
        assemble_tokens(**(arguments | {"visible_index": VISIBLE, "masked_index": MASKED} | change))
