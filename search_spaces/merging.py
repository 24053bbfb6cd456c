"""The space of merged experts: every block's kept experts may be mixtures of all (array genes, for search=eep)."""

from __future__ import annotations

from autoprune.errors import SettingError
from autoprune.shape import Shape
from autoprune.space import ArrayGene


class Merging:
    """A merge matrix and a router map of every block, for the experts that `space=experts` keeps.

    bound: no entry of a matrix is larger than this, or smaller than minus this.
    """

    def __init__(self, bound: float = 2.0) -> None:
        if bound < 1:
            raise SettingError(f"space.merging.bound={bound} must be at least 1: kept experts have ones")
        self.bound = float(bound)

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """None: matrices have no options."""
        return {}

    def genes(self, shape: Shape) -> tuple[ArrayGene, ...]:
        """One gene a block."""
        if not shape.experts:
            raise SettingError(
                f"space=merging needs a model with experts; the family {shape.model_type!r} has none"
            )
        size = (2, shape.experts, shape.experts)
        return tuple(ArrayGene(b, "ffn", "merge", size, -self.bound, self.bound) for b in range(shape.blocks))
