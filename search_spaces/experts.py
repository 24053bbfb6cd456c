"""The space of mixtures of experts: experts kept in every block, zero included, and experts that a token uses."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import SettingError
from autoprune.shape import Shape
from autoprune.space import OptionGene


class Experts:
    """Experts of every block, and experts per token; a block never keeps fewer than a token uses.

    counts: how many experts a block may keep; null is every number from the fewest that a token may use up to all.
    Zero, the FFN gone, and all of them are always among the options.
    per_token: how many experts a token may use; null is every number from 1 up to the model's. The model's own is
    always among the options.
    """

    def __init__(self, counts: Sequence[int] | None = None, per_token: Sequence[int] | None = None) -> None:
        self.counts = _rising("counts", counts)
        self.per_token = _rising("per_token", per_token)

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of each setting: `experts` and, where there is a choice, `experts_per_token`."""
        counts, used = self._checked(shape)
        return {"experts": counts, **({"experts_per_token": used} if len(used) > 1 else {})}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One or two genes a block, in depth order."""
        options = self.options(shape)
        return tuple(
            OptionGene(b, "ffn", name, o) for b in range(shape.blocks) for name, o in options.items()
        )

    def _checked(self, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Options of experts and of experts per token; SettingError when the model cannot have them."""
        if not shape.experts:
            raise SettingError(
                f"space=experts needs a model with experts; the family {shape.model_type!r} has none"
            )
        used = range(1, shape.experts_per_token + 1) if self.per_token is None else self.per_token
        for count in used:
            if not 1 <= count <= shape.experts_per_token:
                raise SettingError(
                    f"space.experts.per_token={list(used)}: {count} is not allowed; "
                    f"1 to {shape.experts_per_token}, as many as a token of this model uses"
                )
        options = tuple(sorted({*used, shape.experts_per_token}))
        counts = range(options[0], shape.experts + 1) if self.counts is None else self.counts
        for count in counts:
            if count and not options[0] <= count <= shape.experts:
                raise SettingError(
                    f"space.experts.counts={list(counts)}: {count} is not allowed; 0, or {options[0]} (experts per "
                    f"token) to {shape.experts}, as many as this model has"
                )
        return tuple(sorted({0, *counts, shape.experts})), options


def _rising(name: str, given: Sequence[int] | None) -> tuple[int, ...] | None:
    if given is not None and (not given or list(given) != sorted(set(given))):
        raise SettingError(f"space.experts.{name}={list(given)} must rise, and there must be some")
    return None if given is None else tuple(given)
