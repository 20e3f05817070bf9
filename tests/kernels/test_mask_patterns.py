"""Block masks are whole blocks up to a fixed count; running cells give every place its turn."""

import pytest
import torch
import torch._functorch.config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvtp_kernels import BlockShapes, block_tube_mask, running_cell_mask, tube_mask
from fastvtp_kernels.masking.patterns import block_shapes, draw_blocks

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
WORD = st.integers(0, 2**64 - 1)
IDS = torch.tensor([3, 2**40 + 3, 0, 2**63 - 1, 17])


def masked_cells(mask, grid):
    """bool [B, t, h, w] from the masked token indices."""
    t, h, w = grid
    hidden = torch.zeros(mask.masked.shape[0], t * h * w, dtype=torch.bool)
    return hidden.scatter(1, mask.masked.long(), True).unflatten(1, grid)


def assert_divides(mask, tokens, hidden):
    """The parts are ascending int32, disjoint and together `tokens` [B, K]; `hidden` of each row are masked."""
    assert mask.visible.dtype == mask.masked.dtype == torch.int32
    assert mask.masked.shape == (len(tokens), hidden)
    for part in mask:
        assert (part.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat(mask, dim=1).sort(dim=1).values, tokens.int())


def among_tubes(batch_size, grid, mask_ratio=0.5, **options):
    tubes = tube_mask(batch_size, grid, 0.75, **options).masked
    return running_cell_mask(batch_size, grid, mask_ratio, among=tubes, **options)


every_pattern = pytest.mark.parametrize("pattern", [block_tube_mask, running_cell_mask, among_tubes])


@every_pattern
def test_a_mask_depends_on_the_sample_not_on_the_batch(pattern):
    together = pattern(5, (3, 5, 6), 0.6, seed=5, step=3, sample_ids=IDS)
    for row, sample_id in enumerate(IDS.tolist()):
        alone = pattern(1, (3, 5, 6), 0.6, seed=5, step=3, sample_ids=[sample_id])
        assert torch.equal(torch.cat(alone, dim=1)[0], torch.cat(together, dim=1)[row])


@every_pattern
def test_seed_step_and_each_word_of_the_sample_id_matter(pattern):
    # At this ratio one turn of the running cell is hidden in part, at random: its four phases alone would often agree.
    base = pattern(1, (4, 8, 8), 0.6, seed=1).masked
    for change in ({"seed": 2}, {"seed": 1 + 2**32}, {"step": 1}, {"sample_ids": [1]}, {"sample_ids": [2**32]}):
        assert not torch.equal(base, pattern(1, (4, 8, 8), 0.6, **{"seed": 1, **change}).masked)
    assert torch.equal(base, pattern(1, (4, 8, 8), 0.6, seed=1, step=0, sample_ids=[0]).masked)


def test_masks_are_frozen():
    """A change of these numbers breaks the reproducibility of every past run."""
    options = {"seed": 1, "step": 2, "sample_ids": [7, 2**40]}
    blocks = block_tube_mask(2, (3, 3, 4), 0.3, shapes=BlockShapes(min_cells=3), **options).masked
    assert blocks.tolist() == [[3, 7, 11, 14, 15, 18, 19, 22, 23, 30, 34], [0, 4, 8, 12, 13, 14, 16, 17, 18, 20, 25]]
    cells = running_cell_mask(2, (2, 3, 3), 0.4, **options).masked
    assert cells.tolist() == [[0, 1, 2, 6, 8, 13, 17], [3, 4, 5, 10, 12, 14, 16]]


@every_pattern
def test_compiles_into_one_graph(pattern):
    def function(sample_ids):
        return pattern(5, (4, 5, 5), 0.6, seed=1, sample_ids=sample_ids)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(IDS)
    assert torch.equal(torch.cat(compiled, dim=1), torch.cat(function(IDS), dim=1))


@every_pattern
def test_stays_on_the_device_and_reads_no_value(pattern):
    with torch._functorch.config.patch(fake_tensor_allow_meta=True), FakeTensorMode():
        sample_ids = torch.empty(3, dtype=torch.int64, device="meta")
        visible, masked = pattern(3, (4, 4, 4), 0.5, seed=1, sample_ids=sample_ids)
    assert visible.device.type == masked.device.type == "meta"
    assert visible.shape == masked.shape


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), GRIDS, st.floats(0, 0.999), st.integers(1, 60), WORD, st.integers(0, 2**32 - 1))
def test_block_mask_masks_the_stated_count(batch_size, grid, mask_ratio, min_cells, seed, step):
    mask = block_tube_mask(batch_size, grid, mask_ratio, seed=seed, step=step, shapes=BlockShapes(min_cells))
    tokens = torch.arange(grid[0] * grid[1] * grid[2]).expand(batch_size, -1)
    assert_divides(mask, tokens, round(mask_ratio * tokens.shape[1]))


BLOCK_GRID = (8, 14, 12)


def boxes(mask_ratio, samples, seed):
    """bool [B, R, t, h, w]: the blocks that `block_tube_mask` draws with its default shape arguments."""
    t, h, w = BLOCK_GRID
    shapes = block_shapes(h, w, 16, int(mask_ratio * h * w), (0.3, 1 / 0.3))
    blocks = draw_blocks(BLOCK_GRID, shapes, (4, 6), seed, 0, torch.arange(samples))
    top, left, height, width, start, length = [value[:, :, None] for value in blocks]
    y, x, slot = torch.arange(h), torch.arange(w), torch.arange(t)
    # Each slot is compared with a run that may have begun in the round before: wrapping without a modulo.
    runs = ((slot >= start) & (slot < start + length)) | (slot + t < start + length)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return runs[:, :, :, None, None] & rows[:, :, None, :, None] & columns[:, :, None, None, :]


@pytest.mark.parametrize(("mask_ratio", "most_blocks"), [(0.1, 4), (0.3, 8), (0.65, 16), (0.9, 40)])
def test_whole_blocks_are_masked_in_order_and_the_last_is_cut(mask_ratio, most_blocks):
    samples = 40
    hidden = masked_cells(block_tube_mask(samples, BLOCK_GRID, mask_ratio, seed=9), BLOCK_GRID)
    drawn = boxes(mask_ratio, samples, seed=9)
    from_above = []
    for sample in range(samples):
        unions = drawn[sample].cumsum(dim=0) > 0
        last = int((unions.sum(dim=(1, 2, 3)) < hidden[sample].sum()).sum())
        assert last < most_blocks
        united, before = unions[last], unions[last - 1] & (last > 0)
        # Every masked token comes from a block: those before the last are whole, the last is there in part.
        assert not (before & ~hidden[sample]).any()
        assert not (hidden[sample] & ~united).any()
        # In reading order the cut keeps one end of what the last block adds; at most one tube is shortened.
        kept = (hidden[sample] & ~before).any(dim=0)
        lost = (united & ~hidden[sample]).any(dim=0)
        assert (kept & lost).sum() <= 1
        ends = kept[kept ^ lost].int()
        assert ends.diff().abs().sum() <= 1
        if kept.any() and lost.any():
            from_above.append(int(ends[0]))
    assert 0.2 < sum(from_above) / len(from_above) < 0.8


LENGTHS = pytest.mark.parametrize(
    ("tube_length", "shortest", "longest"),
    [((0.5, 0.75), 4, 6), ((1, 1), 8, 8), ((0.26, 0.26), 2, 2), ((0.1, 0.3), 1, 2)],
)


@LENGTHS
def test_masked_tokens_form_tubes(tube_length, shortest, longest):
    """Overlapping runs unite, around the end of the clip too, to no less than one run."""
    mask = block_tube_mask(30, (8, 16, 16), 0.65, seed=4, shapes=BlockShapes(tube_length=tube_length))
    assert mask.visible.shape == (30, 717)  # VideoPrism
    hidden = masked_cells(mask, (8, 16, 16))
    begins = hidden & ~hidden.roll(1, dims=1)
    whole = torch.stack([hidden.roll(-later, dims=1) for later in range(shortest)]).all(dim=0)
    assert ((begins & ~whole).any(dim=1).sum(dim=(1, 2)) <= 1).all()  # the cut tube


@LENGTHS
def test_one_block_has_one_run(tube_length, shortest, longest):
    """14 of 2048 tokens are less than a block of 16 cells: all tubes, but for the cut one, are equally long."""
    hidden = masked_cells(
        block_tube_mask(60, (8, 16, 16), 0.007, seed=4, shapes=BlockShapes(tube_length=tube_length)), (8, 16, 16)
    )
    lengths = hidden.sum(dim=1).flatten(1)
    run = lengths.amax(dim=1, keepdim=True)
    assert run.unique().tolist() == list(range(shortest, longest + 1))
    assert (((lengths != run) & (lengths > 0)).sum(dim=1) <= 1).all()
    begins = (hidden & ~hidden.roll(1, dims=1)).sum(dim=1).flatten(1)
    assert begins[lengths == run].unique().tolist() == [int(longest < 8)]


def test_blocks_are_uniform_among_their_kind():
    shapes = block_shapes(6, 9, 12, 20, (0.5, 2.0))
    assert shapes == [(3, 4), (3, 5), (3, 6), (4, 3), (4, 4), (4, 5), (5, 3), (5, 4), (6, 3)]
    blocks = draw_blocks((8, 6, 9), shapes, (4, 6), 0, 0, torch.arange(300))
    squares = (blocks.height == 4) & (blocks.width == 4)
    for values, expected in (
        (blocks.height * 10 + blocks.width, [high * 10 + wide for high, wide in shapes]),
        (blocks.length, [4, 5, 6]),
        (blocks.start, list(range(8))),
        (blocks.top[squares], [0, 1, 2]),
        (blocks.left[squares], [0, 1, 2, 3, 4, 5]),
    ):
        found, counts = values.unique(return_counts=True)
        assert found.tolist() == expected
        mean = values.numel() / len(expected)
        assert ((counts - mean).abs() < 4 * mean**0.5).all()


def test_small_frames_take_what_fits():
    assert block_shapes(2, 3, 16, 3, (0.3, 3)) == [(2, 3)]  # min_cells is more than the frame has
    assert block_shapes(1, 9, 4, 9, (0.3, 3)) == [(1, 3)]  # no rectangle of that area has the aspect
    assert block_shapes(6, 6, 13, 2, (0.3, 3)) == [(3, 5), (5, 3)]  # fewer to mask than the smallest rectangle has


def test_block_masks_favour_no_time_slot_and_no_side():
    hidden = masked_cells(block_tube_mask(3000, (5, 8, 8), 0.5, seed=6), (5, 8, 8)).float().mean(dim=0)
    assert ((hidden.mean(dim=(1, 2)) - 0.5).abs() < 0.02).all()
    cells = hidden.mean(dim=0)
    for mirrored in (cells.flip(0), cells.flip(1), cells.T):
        assert ((cells - mirrored).abs() < 0.04).all()
    # As with any rectangles inside a frame, the corners are rarer than the centre, but they do come.
    assert 0.05 < cells[0, 0] < cells[0, 4] < cells[4, 4] < 0.95


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), GRIDS, st.floats(0, 0.999), st.tuples(st.integers(1, 4), st.integers(1, 4)), WORD, st.data())
def test_running_cell_divides_any_tokens_into_the_stated_counts(batch_size, grid, mask_ratio, cell, seed, data):
    tokens = torch.arange(grid[0] * grid[1] * grid[2]).expand(batch_size, -1)
    mask = running_cell_mask(batch_size, grid, mask_ratio, seed=seed, cell=cell)
    assert_divides(mask, tokens, int(mask_ratio * tokens.shape[1]))
    chosen = data.draw(st.sets(st.integers(0, tokens.shape[1] - 1)).map(sorted))
    among = torch.tensor(chosen, dtype=torch.int32).expand(batch_size, -1)
    mask = running_cell_mask(batch_size, grid, mask_ratio, seed=seed, cell=cell, among=among)
    assert_divides(mask, among, int(mask_ratio * len(chosen)))


def running_cell(grid, cell, hidden_places, phase):
    """bool [t, h, w]: the places of a cell in a queue that moves by one from slot to slot, tiled over the frame."""
    t, h, w = grid
    queue = torch.arange(cell[0] * cell[1]) < hidden_places
    return torch.stack([queue.roll(-slot - phase).view(cell).tile(h, w)[:h, :w] for slot in range(t)])


@pytest.mark.parametrize(
    ("grid", "cell", "hidden_places"),
    [((8, 14, 14), (2, 2), 2), ((3, 4, 6), (2, 2), 1), ((4, 5, 7), (2, 2), 3), ((6, 3, 5), (2, 3), 2)],
)
def test_running_cell_is_that_of_videomae_v2(grid, cell, hidden_places):
    places = cell[0] * cell[1]
    hidden = masked_cells(running_cell_mask(200, grid, hidden_places / places, seed=8, cell=cell), grid)
    phases = torch.stack([running_cell(grid, cell, hidden_places, phase) for phase in range(places)])
    matches = (hidden[:, None] == phases).flatten(2).all(dim=2)
    assert (matches.sum(dim=1) == 1).all()
    assert ((matches.sum(dim=0) - 200 / places).abs() < 30).all()


def test_among_tubes_the_decoder_keeps_every_place_equally_often():
    grid = (8, 7, 9)
    tubes = tube_mask(20, grid, 0.9, seed=3)
    mask = running_cell_mask(20, grid, 0.5, seed=8, among=tubes.masked)
    assert_divides(mask, tubes.masked, tubes.masked.shape[1] // 2)
    hidden, tube_cells = masked_cells(mask, grid), masked_cells(tubes, grid)
    # With t a multiple of the cell's four places: the same pattern as over the whole clip, inside the tubes.
    assert torch.equal(hidden, tube_cells & masked_cells(running_cell_mask(20, grid, 0.5, seed=8), grid))
    assert torch.equal(hidden.sum(dim=1), tube_cells[:, 0] * 4)


def test_the_order_of_among_does_not_matter():
    tubes = tube_mask(5, (3, 5, 5), 0.7, seed=0).masked
    one, other = (running_cell_mask(5, (3, 5, 5), 0.6, seed=1, among=among) for among in (tubes, tubes.flip(1)))
    assert torch.equal(torch.cat(one, dim=1), torch.cat(other, dim=1))


@pytest.mark.parametrize("mask_ratio", [0.1, 0.6, 0.9])
def test_a_turn_hidden_in_part_is_hidden_at_random(mask_ratio):
    grid = (5, 4, 6)
    hidden = masked_cells(running_cell_mask(3000, grid, mask_ratio, seed=1), grid).float().mean(dim=0)
    # Standard deviation of a frequency over 3000 draws: at most 0.009.
    assert ((hidden - mask_ratio).abs() < 0.04).all()


NOT_OF_BOTH = [
    ({"batch_size": -1}, "batch_size -1, grid .* expected B >= 0"),
    ({"grid": (2, 0, 2)}, r"batch_size 1, grid \(2, 0, 2\): expected B >= 0, three sizes >= 1"),
    ({"grid": (2, 2)}, r"batch_size 1, grid \(2, 2\)"),
    ({"mask_ratio": 1.0}, "mask_ratio is 1.0, expected 0 <= mask_ratio < 1"),
    ({"mask_ratio": -0.1}, "mask_ratio is -0.1"),
    ({"seed": -1}, "seed is -1"),
    ({"step": 2**32}, "step is 4294967296"),
    ({"sample_ids": [1, 2]}, r"sample_ids has shape \[2\], expected \[1\]"),
]
NOT_OF_BLOCKS = [
    ({"shapes": BlockShapes(min_cells=0)}, "min_cells is 0, expected min_cells >= 1"),
    ({"shapes": BlockShapes(aspect=(2, 1))}, r"aspect is \(2, 1\), expected 0 < least <= greatest"),
    ({"shapes": BlockShapes(aspect=(0, 1))}, r"aspect is \(0, 1\)"),
    ({"shapes": BlockShapes(aspect=(1,))}, r"aspect is \(1,\)"),
    ({"shapes": BlockShapes(aspect=(4, 5))}, r"aspect is \(4, 5\), expected one that a rectangle in 3 x 4 cells has"),
    ({"shapes": BlockShapes(tube_length=(0, 0.5))}, r"tube_length is \(0, 0.5\), expected 0 < least <= greatest <= 1"),
    ({"shapes": BlockShapes(tube_length=(0.5, 1.5))}, r"tube_length is \(0.5, 1.5\)"),
    ({"shapes": BlockShapes(tube_length=(0.5,))}, r"tube_length is \(0.5,\)"),
]
NOT_OF_CELLS = [
    ({"cell": (0, 2)}, r"cell is \(0, 2\), expected two sizes >= 1"),
    ({"cell": (2,)}, r"cell is \(2,\)"),
    ({"among": torch.tensor([[24]])}, r"among holds 24..24, .* in \[0, 24\)"),
    ({"among": torch.tensor([1])}, r"among has shape \[1\], expected \[1, K\]"),
]


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        *((block_tube_mask, *case) for case in NOT_OF_BOTH + NOT_OF_BLOCKS),
        *((running_cell_mask, *case) for case in NOT_OF_BOTH + NOT_OF_CELLS),
    ],
)
def test_refuses_values(op, change, message):
    with pytest.raises(ValueError, match=f"^{op.__name__}: {message}"):
        op(**({"batch_size": 1, "grid": (2, 3, 4), "mask_ratio": 0.5, "seed": 0} | change))


def test_refuses_indices_that_are_no_integers():
    with pytest.raises(TypeError, match=r"^block_tube_mask: sample_ids is torch.float32, expected int32"):
        block_tube_mask(1, (2, 3, 4), 0.5, seed=0, sample_ids=torch.ones(1))
    with pytest.raises(TypeError, match=r"^running_cell_mask: among is torch.float32, expected int32 or int64"):
        running_cell_mask(1, (2, 3, 4), 0.5, seed=0, among=torch.ones(1, 5))
