"""The structured space: KV groups (with their query heads) and FFN width of every block, zero included in both."""

from __future__ import annotations

from autoprune.errors import SettingError
from autoprune.shape import EXPERT_MULTIPLE, Shape
from autoprune.space import OptionGene

MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


class Structured:
    """KV groups and FFN width of every block; bound to a model by `genes`.

    ffn_options: at least this many FFN widths, zero and the full width among them; of experts, whose widths are
    multiples of 8, as many as there can be. All experts of a block lose as many neurons.
    ffn_multiple: widths are multiples of this; null picks the largest of 256 … 1 that gives `ffn_options` widths.
    """

    def __init__(self, ffn_options: int = 9, ffn_multiple: int | None = None) -> None:
        if ffn_options < 2:
            raise SettingError(f"space.structured.ffn_options={ffn_options} is too small; at least 2")
        if ffn_multiple is not None and ffn_multiple < 1:
            raise SettingError(f"space.structured.ffn_multiple={ffn_multiple} must be at least 1, or null")
        self.ffn_options = ffn_options
        self.ffn_multiple = ffn_multiple

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of each setting: `kv_groups` and `width`."""
        return {"kv_groups": tuple(range(shape.kv_groups + 1)), "width": self._widths(shape)}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """Two genes a block, in depth order."""
        options = self.options(shape)
        return tuple(
            gene
            for block in range(shape.blocks)
            for gene in (
                OptionGene(block, "attention", "kv_groups", options["kv_groups"]),
                OptionGene(block, "ffn", "width", options["width"]),
            )
        )

    def _widths(self, shape: Shape) -> tuple[int, ...]:
        ffn, least = shape.ffn, EXPERT_MULTIPLE if shape.experts else 1
        if self.ffn_multiple is not None and self.ffn_multiple % least:
            raise SettingError(
                f"space.structured.ffn_multiple={self.ffn_multiple} must be a multiple of {least}: the library's "
                "products over experts need widths of whole 16 bytes"
            )
        wanted = min(self.ffn_options, ffn + 1)
        fitting = (m for m in MULTIPLES if m >= least and _grid_size(ffn, m) >= wanted)
        multiple = self.ffn_multiple or next(fitting, least)
        multiple = _thinned(ffn, multiple, wanted) if self.ffn_multiple is None else multiple
        return tuple(sorted({*range(0, ffn, multiple), ffn}))


def _grid_size(ffn: int, multiple: int) -> int:
    return len({*range(0, ffn, multiple), ffn})


def _thinned(ffn: int, multiple: int, wanted: int) -> int:
    """The largest whole number of `multiple`s whose grid still has the wanted number of options."""
    step = multiple
    while step < ffn and _grid_size(ffn, step + multiple) >= wanted:
        step += multiple
    return step
