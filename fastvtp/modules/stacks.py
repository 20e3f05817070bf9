"""Which parameters of a model stand how deep: what rates that fall with depth go by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stack:
    """The blocks that a clip or a text passes one after the other. What no stack of a model names stands above all.

    Every entry is the path of a module or of a parameter, from the model on.

    Attributes:
        embeddings: what stands beneath the first block.
        layers: of each block, the first one first, what is as deep as it: the block, and what is between it and the
            next.
    """

    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...] = ()

    def under(self, path: str, count: int) -> "Stack":
        """Return the stack with the `count` modules of the list at `path` on top: `path`.0, `path`.1 and so on."""
        return replace(self, layers=(*self.layers, *((f"{path}.{number}",) for number in range(count))))

    def closed_by(self, *paths: str) -> "Stack":
        """Return the stack with `paths` as deep as its last block, or as its embeddings where it has none."""
        if not self.layers:
            return replace(self, embeddings=self.embeddings + paths)
        return replace(self, layers=(*self.layers[:-1], self.layers[-1] + paths))

    def inside(self, module: str) -> "Stack":
        """Return the stack of a module as one of the model that holds it at the path `module`."""
        return Stack(_within(module, self.embeddings), tuple(_within(module, layer) for layer in self.layers))


def _within(module: str, paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{module}.{path}" for path in paths)
