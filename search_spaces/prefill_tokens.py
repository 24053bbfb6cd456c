"""The prompt-token space: how many of a prompt's tokens every block of a decoder hands on, for now or for good."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import SettingError
from autoprune.shape import Shape
from autoprune.space import KEEP, PREFILL, PROMPT, OptionGene

SETTING, FOR_GOOD = f"{KEEP}{PREFILL}", f"{KEEP}{PROMPT}"


class PrefillTokens:
    """A keep ratio for the prompt's tokens in every block of a decoder.

    keep: shares of the prompt tokens that enter a block which its attention may hand on, in per cent; 100, always among
        them, is exact. Those stay that the newest token looks at most.
    returning: whether every later token chooses anew among the whole prompt (LazyLLM); False: what was dropped while
        the prompt was read stays away, so caches are smaller and decoding is faster.
    """

    def __init__(
        self, keep: Sequence[int] = (10, 20, 30, 40, 50, 60, 70, 80, 90), returning: bool = True
    ) -> None:
        rising = not any(b <= a for a, b in zip(keep, keep[1:], strict=False))
        if not keep or not rising or any(not isinstance(k, int) or not 1 <= k <= 100 for k in keep):
            raise SettingError(
                f"space.prefill_tokens.keep={list(keep)} must be whole numbers from 1 to 100 that rise, at least one"
            )
        if not isinstance(returning, bool):
            raise SettingError(f"space.prefill_tokens.returning={returning!r} must be true or false")
        self.keep = tuple(sorted({*keep, 100}))
        self.setting = SETTING if returning else FOR_GOOD

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of its setting; raises SettingError for a family that reads no prompts."""
        if shape.task != "text":
            raise SettingError(
                f"space=[prefill_tokens] does not fit family {shape.model_type!r}, which continues no prompt; "
                "for classifiers there is space=[tokens]"
            )
        return {self.setting: self.keep}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One gene a block."""
        keep = self.options(shape)[self.setting]
        return tuple(OptionGene(block, "attention", self.setting, keep) for block in range(shape.blocks))
