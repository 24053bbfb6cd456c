"""The prompt-token space: how many of a prompt's tokens every block of a decoder hands on, for now (LazyLLM)."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import SettingError
from autoprune.shape import Shape
from autoprune.space import KEEP, PREFILL, OptionGene

SETTING = f"{KEEP}{PREFILL}"


class PrefillTokens:
    """A keep ratio for the prompt's tokens in every block of a decoder; later tokens may bring others back.

    keep: shares of the prompt tokens that enter a block which its attention may hand on, in per cent; 100, always among
        them, is exact. Those stay that the newest token looks at most.
    """

    def __init__(self, keep: Sequence[int] = (10, 20, 30, 40, 50, 60, 70, 80, 90)) -> None:
        rising = not any(b <= a for a, b in zip(keep, keep[1:], strict=False))
        if not keep or not rising or any(not isinstance(k, int) or not 1 <= k <= 100 for k in keep):
            raise SettingError(
                f"space.prefill_tokens.keep={list(keep)} must be whole numbers from 1 to 100 that rise, at least one"
            )
        self.keep = tuple(sorted({*keep, 100}))

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of its setting; raises SettingError for a family that reads no prompts."""
        if shape.task != "text":
            raise SettingError(
                f"space=[prefill_tokens] does not fit family {shape.model_type!r}, which continues no prompt; "
                "for classifiers there is space=[tokens]"
            )
        return {SETTING: self.keep}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One gene a block."""
        keep = self.options(shape)[SETTING]
        return tuple(OptionGene(block, "attention", SETTING, keep) for block in range(shape.blocks))
