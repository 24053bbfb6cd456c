"""The token space: how many of its tokens every block of a classifier hands on, and by which rule they are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import SettingError, nearest
from autoprune.shape import Shape
from autoprune.space import KEEP, OptionGene

RULES = ("attention", "cls", "merge", "pagerank")


class Tokens:
    """A keep ratio for every block; bound to a model by `genes`.

    rule: what ranks tokens: attention received (attention), that of the [CLS] token (cls), weighted PageRank over
        attention (pagerank), or similarity, by which tokens are merged instead of dropped (merge).
    keep: shares of the tokens that enter a block which it may hand on, in per cent; 100 is always among them.
    """

    def __init__(
        self, rule: str = "attention", keep: Sequence[int] = (10, 20, 30, 40, 50, 60, 70, 80, 90)
    ) -> None:
        if rule not in RULES:
            raise SettingError(f"space.tokens.rule={rule} is unknown" + nearest(rule, RULES))
        rising = not any(b <= a for a, b in zip(keep, keep[1:], strict=False))
        if not keep or not rising or any(not isinstance(k, int) or not 1 <= k <= 100 for k in keep):
            raise SettingError(
                f"space.tokens.keep={list(keep)} must be whole numbers from 1 to 100 that rise, at least one"
            )
        self.setting = f"{KEEP}{rule}"
        self.keep = tuple(sorted({*keep, 100}))

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of the rule's setting; raises SettingError for a family that keeps all its tokens."""
        if shape.task == "text":
            raise SettingError(
                f"space=[tokens] does not fit family {shape.model_type!r}, which continues every token (for prompts "
                "there is space=[prefill_tokens]); it is for classifiers: bert, roberta, distilbert, vit, deit"
            )
        return {self.setting: self.keep}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One gene a block."""
        keep = self.options(shape)[self.setting]
        return tuple(OptionGene(b, "attention", self.setting, keep) for b in range(shape.blocks))
