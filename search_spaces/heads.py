"""The head space: how many query heads every KV group of a block keeps; KV groups and their cache stay."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import SettingError
from autoprune.shape import GROUP_HEADS, Shape
from autoprune.space import OptionGene


class Heads:
    """Query heads inside a KV group: equally many in all groups of a block, each group's own best ones.

    options: how many of them, besides all, rising (null: every number from 1).
    """

    def __init__(self, options: Sequence[int] | None = None) -> None:
        if options is not None and (
            not options
            or any(not isinstance(o, int) for o in options)
            or list(options) != sorted(set(options))
        ):
            raise SettingError(
                f"space.heads.options={list(options)} must be whole numbers that rise, at least one"
            )
        self.wanted = None if options is None else tuple(options)

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of its setting, all included; raises SettingError where groups have no heads to lose."""
        whole = shape.heads_per_group
        if whole < 2:
            raise SettingError(
                f"space=[heads] needs several query heads in a KV group; this {shape.model_type} has "
                f"{shape.kv_groups} groups of one, which space=[structured] drops"
            )
        if shape.group_norm_params:
            raise SettingError(
                f"space=[heads] does not fit {shape.model_type}, which norms all its heads at once"
            )
        given = tuple(range(1, whole)) if self.wanted is None else self.wanted
        if not 1 <= given[0] <= given[-1] < whole:
            raise SettingError(
                f"space.heads.options={list(given)}: a KV group of this model keeps 1 to {whole - 1} query heads; "
                f"{whole}, all, is added"
            )
        return {GROUP_HEADS: (*given, whole)}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One gene a block."""
        options = self.options(shape)[GROUP_HEADS]
        return tuple(OptionGene(block, "attention", GROUP_HEADS, options) for block in range(shape.blocks))
