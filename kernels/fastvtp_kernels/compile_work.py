"""What each kernel's launch has to do: its elements, how many a pass of the main loop covers, products and bytes.

A kernel's line in `WORK` says what its element is (a logit, a pixel, a feature) and reckons from the tile and the
arguments of the launch. A kernel without a line is a fault of the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .compile_code import products
from .launching import Compiled, blocks


@dataclass(frozen=True)
class Work:
    """The work of one launch."""

    element: str
    per_pass: float
    """Elements of a tile that one pass of the main loop covers; of the whole program where it has no loop."""
    passes: float
    """Of the main loop, in a program, on average."""
    programs: int
    elements: float
    """Of the launch, without what pads them to tiles."""
    bytes: int
    """That memory must read and write at least."""
    sweeps: bool = False
    """Every innermost loop runs over all elements, one after another."""
    roles: int = 1
    """Ways through the kernel, each with a main loop of its own: a program goes one of them, as many each way."""
    flops_of_pass: float = 0
    """Of the products of one pass, tiles in full."""
    flops_outside: float = 0
    """Of the products of one program outside loops."""

    @property
    def flops(self) -> float:
        """Of the launch's products, tiles in full."""
        return self.programs * (self.flops_outside + self.passes * self.flops_of_pass)

    @property
    def useful_flops(self) -> float:
        """Of the launch's products, without what pads the elements to tiles."""
        return self.flops * min(1.0, self.elements / (self.programs * self.passes * self.per_pass))


@dataclass(frozen=True)
class Launch:
    """A launch as the lines of `WORK` read it: its arguments by name."""

    compiled: Compiled

    def __getitem__(self, name: str) -> Any:
        return self.compiled.arguments[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)

    def size(self, name: str) -> int:
        """Return the bytes of an argument."""
        tensor = self[name]
        return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0

    def bytes(self, **touched: int) -> int:
        """Return the bytes of all tensors, each once, but of those named only as many as given."""
        return sum(touched.get(name, self.size(name)) for name in self.compiled.arguments)


class _Sequences(NamedTuple):
    """Sizes of an attention launch whose sequences are of equal length."""

    count: int
    heads: int
    length: int
    length_k: int
    width: int
    causal: bool

    @property
    def logits(self) -> int:
        seen = self.length * self.length_k
        if self.causal:
            seen -= self.length * (self.length - 1) // 2
        return self.count * self.heads * seen

    def passes_over_keys(self, rows: int, columns: int) -> float:
        """Return the key tiles that a tile of queries meets, on average."""
        behind = self.length_k - self.length
        ends = [
            min(self.length_k, first + rows + behind) if self.causal else self.length_k
            for first in range(0, self.length, rows)
        ]
        return sum(blocks(end, columns) for end in ends) / len(ends)

    def passes_over_queries(self, rows: int, columns: int) -> float:
        """Return the query tiles that a tile of keys meets, on average."""
        behind = self.length_k - self.length
        begins = [
            max(first - behind, 0) // rows * rows if self.causal else 0 for first in range(0, self.length_k, columns)
        ]
        return sum(blocks(self.length - begin, rows) for begin in begins) / len(begins)


def _sequences(launch: Launch) -> _Sequences:
    query, key = launch["query_ptr"], launch["key_ptr"]
    count, heads, width = launch["sequences"], launch["heads"], launch["D"]
    rows, rows_k = (tensor.numel() // (count * heads * width) for tensor in (query, key))
    return _Sequences(count, heads, rows, rows_k, width, launch["CAUSAL"])


def _attention(passes: Callable[[_Sequences, Launch], tuple[float, float]]) -> Callable[[Launch], dict[str, Any]]:
    """Return a line of `WORK`; `passes` gives the logits of a pass and the number of passes."""

    def line(launch: Launch) -> dict[str, Any]:
        sequences = _sequences(launch)
        per_pass, count = passes(sequences, launch)
        return {"element": "logit", "per_pass": per_pass, "passes": count, "elements": sequences.logits}

    return line


def _tile(launch: Launch) -> int:
    return launch["BLOCK_M"] * launch["BLOCK_N"]


def _over_keys(sequences: _Sequences, launch: Launch) -> tuple[float, float]:
    return _tile(launch), sequences.passes_over_keys(launch["BLOCK_M"], launch["BLOCK_N"])


def _over_queries(sequences: _Sequences, launch: Launch) -> tuple[float, float]:
    return _tile(launch), sequences.passes_over_queries(launch["BLOCK_M"], launch["BLOCK_N"])


def _resident_forward(sequences: _Sequences, launch: Launch) -> tuple[float, float]:
    return launch["TILES"] * _tile(launch), blocks(sequences.length, launch["BLOCK_M"])


def _resident_backward(launch: Launch) -> dict[str, Any]:
    """Both programs of a sequence and head compute all logits, one for keys and values, the other for queries."""
    sequences, block = _sequences(launch), launch["BLOCK"]
    sides = (sequences.length, sequences.length_k)
    return {
        "element": "logit",
        "per_pass": launch["TILES"] * launch["BLOCK_STAYING"] * block,
        "passes": sum(blocks(side, block) for side in sides) / 2,
        "elements": 2 * sequences.logits,
        "roles": 2,
    }


def _rank_by_length(launch: Launch) -> dict[str, Any]:
    side, count = launch["BLOCK"], launch["sequences"]
    return {"element": "comparison", "per_pass": side**2, "passes": blocks(count, side), "elements": count**2}


def _pixels_of_tokens(launch: Launch) -> int:
    return launch["index_ptr"].numel() * launch["P"]


def _frames(launch: Launch) -> int:
    return _pixels_of_tokens(launch) * launch["video_ptr"].element_size()


def _embed(launch: Launch) -> dict[str, Any]:
    return {
        "element": "pixel",
        "per_pass": launch["BLOCK_M"] * launch["BLOCK_P"],
        "passes": blocks(launch["P"], launch["BLOCK_P"]),
        # Every block of the embedding's columns converts them again.
        "elements": _pixels_of_tokens(launch) * blocks(launch["D"], launch["BLOCK_D"]),
        "bytes": launch.bytes(video_ptr=_frames(launch)),
    }


def _weight_gradient(launch: Launch) -> dict[str, Any]:
    return {
        "element": "pixel",
        "per_pass": launch["BLOCK_M"] * launch["BLOCK_P"],
        "passes": launch["split_tokens"] // launch["BLOCK_M"],
        "elements": _pixels_of_tokens(launch) * blocks(launch["D"], launch["BLOCK_D"]),
        "bytes": launch.bytes(video_ptr=_frames(launch)),
    }


def _gather(launch: Launch) -> dict[str, Any]:
    return {
        "element": "pixel",
        "per_pass": launch["BLOCK_M"] * launch["BLOCK_P"],
        "elements": _pixels_of_tokens(launch),
        "bytes": launch.bytes(video_ptr=_frames(launch)),
    }


def _pixel_loss(launch: Launch) -> dict[str, Any]:
    return {
        "element": "pixel",
        "per_pass": launch["BLOCK_M"] * launch["BLOCK_P"],
        "passes": blocks(launch["P"], launch["BLOCK_P"]),
        "elements": _pixels_of_tokens(launch),
        "bytes": launch.bytes(video_ptr=_frames(launch)),
        "sweeps": True,
    }


def _byte_loss(launch: Launch) -> dict[str, Any]:
    columns = blocks(launch["SEGMENT"], launch["BLOCK_COLUMNS"]) * launch["BLOCK_COLUMNS"]
    return {
        "element": "pixel",
        "per_pass": launch["LINES"] * columns,
        "elements": _pixels_of_tokens(launch),
        "bytes": launch.bytes(video_ptr=_frames(launch)),
    }


def _fold(launch: Launch) -> dict[str, Any]:
    values = launch["C"] * launch["VALUES"]
    return {
        "element": "weight",
        "per_pass": launch["BLOCK_VALUES"],
        "passes": launch["C"] * blocks(launch["VALUES"], launch["BLOCK_VALUES"]),
        "elements": launch.compiled.programs * values,
    }


def _unfold_gradient(launch: Launch) -> dict[str, Any]:
    return {
        "element": "partial",
        "per_pass": launch["BLOCK_VALUES"],
        "passes": launch["C"] * blocks(launch["VALUES"], launch["BLOCK_VALUES"]) * launch["SPLITS"],
        "elements": launch["partial_ptr"].numel(),
    }


def _sum_chunks(launch: Launch) -> dict[str, Any]:
    """As if all rows were of one list."""
    rows, width = launch["partial_ptr"].shape[0] * launch["CHUNK"], launch["D"]
    return {
        "element": "feature",
        "per_pass": launch["BLOCK_ROWS"] * launch["BLOCK_D"],
        "passes": launch["CHUNK"] // launch["BLOCK_ROWS"],
        "elements": rows * width,
    }


def _sum_segments(launch: Launch) -> dict[str, Any]:
    rows, segments = launch.shape("rows_ptr")[0], launch.shape("output_ptr")[0]
    return {
        "element": "feature",
        "per_pass": launch["BLOCK_ROWS"] * launch["BLOCK_D"],
        "passes": blocks(blocks(rows, segments), launch["BLOCK_ROWS"]),
        "elements": launch["rows_ptr"].numel(),
    }


def _spread_segments(launch: Launch) -> dict[str, Any]:
    rows, segments = launch["M"], launch["S"]
    return {
        "element": "feature",
        "per_pass": launch["BLOCK_ROWS"] * launch["BLOCK_D"],
        "passes": blocks(blocks(rows, segments), launch["BLOCK_ROWS"]),
        "elements": launch["output_ptr"].numel(),
    }


def _scale(launch: Launch) -> dict[str, Any]:
    # Read and written in place.
    touched = launch.bytes(values_ptr=2 * launch.size("values_ptr"))
    return {"element": "value", "per_pass": launch["BLOCK"], "elements": launch["count"], "bytes": touched}


def _assemble(launch: Launch) -> dict[str, Any]:
    per_pass = launch["BLOCK_ROWS"] * launch["BLOCK_D"]
    return {"element": "feature", "per_pass": per_pass, "elements": launch["output_ptr"].numel()}


def _assemble_backward(launch: Launch) -> dict[str, Any]:
    per_pass = launch["BLOCK_ROWS"] * launch["BLOCK_D"]
    passes, elements = launch["STEPS"], launch["grad_ptr"].numel()
    return {"element": "feature", "per_pass": per_pass, "passes": passes, "elements": elements}


def _tube_mask(launch: Launch) -> dict[str, Any]:
    cells, others = launch["cells"], launch["BLOCK_OTHERS"]
    return {
        "element": "comparison",
        "per_pass": launch["BLOCK_CELLS"] * others,
        "passes": blocks(cells, others),
        "elements": launch.compiled.programs * cells**2,
    }


def _logits(launch: Launch) -> dict[str, Any]:
    """The main loop adds products of BLOCK_D features; a logit is whole after as many passes as that takes."""
    passes = blocks(launch["D"], launch["BLOCK_D"])
    return {
        "element": "logit",
        "per_pass": _tile(launch) / passes,
        "passes": passes,
        "elements": launch["M"] * launch["N"],
    }


def _own_products(launch: Launch) -> dict[str, Any]:
    passes = blocks(launch["D"], launch["BLOCK_D"])
    per_pass, elements = launch["BLOCK_M"] ** 2 / passes, launch["M"] * launch["BLOCK_M"]
    return {"element": "logit", "per_pass": per_pass, "passes": passes, "elements": elements}


def _join(launch: Launch) -> dict[str, Any]:
    return {
        "element": "part",
        "per_pass": launch["BLOCK_PARTS"] * launch["BLOCK"],
        "passes": blocks(launch["parts"], launch["BLOCK_PARTS"]),
        "elements": launch["parts_ptr"].numel(),
    }


def _sample(launch: Launch) -> dict[str, Any]:
    return {
        "element": "feature",
        "per_pass": launch["BLOCK_N"] * launch["BLOCK_D"],
        "passes": blocks(launch["D"], launch["BLOCK_D"]),
        "elements": launch["M"] * launch["BLOCK_N"] * launch["D"],
    }


# Kernel -> its work by the fields of `Work`; one pass where `passes` is left out, every tensor once without `bytes`.
WORK: dict[str, Callable[[Launch], dict[str, Any]]] = {
    "tiny_forward": _attention(lambda sequences, launch: (_tile(launch), 1)),
    "tiny_backward": _attention(lambda sequences, launch: (_tile(launch), 1)),
    "resident_forward": _attention(_resident_forward),
    "resident_backward": _resident_backward,
    "stream_forward": _attention(_over_keys),
    "stream_backward_keys": _attention(_over_queries),
    "stream_backward_queries": _attention(_over_keys),
    "rank_by_length": _rank_by_length,
    "embed": _embed,
    "weight_gradient": _weight_gradient,
    "fold": _fold,
    "unfold_gradient": _unfold_gradient,
    "gather": _gather,
    "pixel_loss": _pixel_loss,
    "byte_loss": _byte_loss,
    "scale": _scale,
    "assemble": _assemble,
    "assemble_backward": _assemble_backward,
    "sum_chunks": _sum_chunks,
    "sum_segments": _sum_segments,
    "spread_segments": _spread_segments,
    "tube_mask": _tube_mask,
    "statistics": _logits,
    "logit_gradient": _logits,
    "sigmoid": _logits,
    "own_products": _own_products,
    "join": _join,
    "sample": _sample,
}


def work_of(compiled: Compiled) -> Work | None:
    """Return the work of a launch; None where `WORK` has no line for its kernel."""
    line = WORK.get(compiled.kernel.lstrip("_"))
    if line is None:
        return None
    launch = Launch(compiled)
    fields = {"passes": 1, "bytes": launch.bytes(), **line(launch)}
    of_pass, outside = products(compiled.binary.asm["ttir"], fields.get("roles", 1))
    return Work(programs=compiled.programs, flops_of_pass=of_pass, flops_outside=outside, **fields)
