"""The sparsity space: how much of each matrix of every block is kept in place, in one pattern."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from autoprune.errors import SettingError, nearest
from autoprune.patterns import FULL, Pattern, pattern_of
from autoprune.shape import Shape, full_plan, matrices
from autoprune.space import KINDS, Kind, OptionGene, SublayerPlan

NAMES = ("q", "k", "v", "o", "gate", "up", "down")
DENSITIES = (20, 35, 50, 65, 80, FULL)


class Sparsity:
    """A mask on every matrix of every block, each its own gene; bound to a model by `genes`.

    pattern: `unstructured`; `M` for N:M along the inputs, as in 4; or blocks `RxC` of R outputs x C inputs, as in 8x1.
    matrices: some of q, k, v, o, gate, up, down; null: all that the model has. Experts of a block share their genes.
    densities: what a gene may keep, rising, the last one everything: per cent, or N of N:M; null: 20 to 100, or 1 to M.
    """

    def __init__(
        self,
        pattern: str | int = "unstructured",
        matrices: Sequence[str] | str | None = None,
        densities: Sequence[int] | int | None = None,
    ) -> None:
        self._pattern = _pattern(str(pattern))
        self._matrices = None if matrices is None else _names(matrices)
        self._densities = _densities(self._pattern, densities)

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The same densities for every matrix."""
        return {gene.setting: gene.options for gene in self.genes(shape)[: len(NAMES)]}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One gene a matrix, in depth order; SettingError when the model lacks one or the pattern does not fit."""
        full = full_plan(shape)
        found = [self._fitting(shape, full.at(0, kind)) for kind in KINDS]
        for name in self._matrices or ():
            if not any(name in names for names in found):
                raise SettingError(
                    f"space.sparsity.matrices holds {name}: {shape.model_type} has no such matrix"
                )
        return tuple(
            self._gene(block, kind, name)
            for block in range(shape.blocks)
            for kind, names in zip(KINDS, found, strict=True)
            for name in names
        )

    def _gene(self, block: int, kind: Kind, matrix: str) -> OptionGene:
        return OptionGene(block, kind, f"{matrix}.{self._pattern.text}", self._densities)

    def _fitting(self, shape: Shape, plan: SublayerPlan) -> list[str]:
        """The matrices to mask of a sublayer."""
        sizes = matrices(shape, plan)
        wanted = [n for n in NAMES if n in sizes and (self._matrices is None or n in self._matrices)]
        for name in wanted:
            if refusal := self._pattern.refusal(*sizes[name]):
                raise SettingError(
                    f"space.sparsity.pattern={self._pattern.text} does not fit {name}: {refusal}; "
                    "choose another pattern or leave it out of space.sparsity.matrices"
                )
        return wanted


def _pattern(text: str) -> Pattern:
    try:
        return pattern_of(text)
    except SettingError as error:
        raise SettingError(f"space.sparsity.{error}") from error


def _names(given: Sequence[str] | str) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else list(given)
    if not names or len(set(names)) < len(names):
        raise SettingError(f"space.sparsity.matrices={names}: name at least one matrix, and each once")
    for name in names:
        if name not in NAMES:
            raise SettingError(
                f"space.sparsity.matrices holds {name!r}, which is unknown" + nearest(name, NAMES)
            )
    return tuple(names)


def _densities(pattern: Pattern, given: Sequence[int] | int | None) -> tuple[int, ...]:
    if given is None:
        return DENSITIES if pattern.full == FULL else tuple(range(1, pattern.full + 1))
    found = (given,) if isinstance(given, int) else tuple(given)
    unit = "per cent" if pattern.full == FULL else f"N of {pattern.full}"
    whole = all(isinstance(d, int) and d > 0 for d in found)
    if not whole or not found or any(a >= b for a, b in pairwise(found)) or found[-1] != pattern.full:
        raise SettingError(
            f"space.sparsity.densities={list(found)}: they are {unit}, whole numbers that rise from at least 1 to "
            f"{pattern.full}, which keeps everything"
        )
    return found
