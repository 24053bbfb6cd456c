"""Everything that decides a ladder's weights, besides the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoprune.data import Windows
from autoprune.space import Kind, Plan

LADDERS = ("refit", "nested")
LAYOUT = 3
EXPERT_CRITERION = "activation"  # unless told otherwise


@dataclass(frozen=True)
class LadderRecipe:
    """How ladders are built.

    windows: of *calibration*, as `Corpus.windows` holds them; sequences: windows in a chunk; options: of each setting;
    damping: added to the moments' diagonal, as a share of its mean; reference: the plan whose outputs the next
    sublayer's statistics are taken from (refit only), None for the dense model; sites: options of single sites, by
    gene name, in place of `options`; follow: aim at the dense model's hidden states instead of the reference's own
    (refit only), the full option too; expert_criterion and seed: how experts are ranked, None where there are none;
    bias: the mean of what dropped units gave goes into the output's bias (nested only; card B2); relative: tokens count
    by one over the squared length of their hidden states, which the next norm divides by (refit only).
    """

    windows: Windows
    sequences: int
    ladder: str = "refit"
    criterion: str = "obs"
    damping: float = 1e-3
    options: Mapping[str, tuple[int, ...]] | None = None
    reference: Plan | None = None
    sites: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    follow: bool = False
    expert_criterion: str | None = None
    seed: int = 0
    bias: bool = False
    relative: bool = False

    def counts(self, block: int, kind: Kind, setting: str) -> tuple[int, ...]:
        """How many units the options of a site keep."""
        assert self.options is not None, (
            "ladders with weights of their own for each option need to know the options"
        )
        return self.sites.get(f"block{block}.{kind}.{setting}", self.options[setting])

    def partial(self, block: int, kind: Kind, setting: str, full: int) -> bool:
        """Whether some option of a site keeps neither nothing nor all: only then its units need an order."""
        return self.options is None or any(0 < c < full for c in self.counts(block, kind, setting))

    def identity(self) -> dict[str, Any]:
        """Plain data that changes whenever the weights would."""
        refit, own = self.ladder == "refit", self.ladder == "refit" or self.bias
        rebuilt = {"sites": {k: list(v) for k, v in sorted(self.sites.items())}, "follow": self.follow}
        return {
            **(rebuilt if refit and (self.sites or self.follow) else {}),
            "calibration": hashlib.sha256(np.ascontiguousarray(self.windows).tobytes()).hexdigest(),
            "shape": list(self.windows.shape),
            "sequences": self.sequences,
            "ladder": self.ladder,
            "criterion": self.criterion,
            "damping": self.damping,
            "options": {k: list(v) for k, v in sorted((self.options or {}).items())} if own else None,
            "reference": self.reference.to_json() if refit and self.reference is not None else None,
            "layout": LAYOUT,
            **({"bias": True} if self.bias else {}),
            **({"relative": True} if self.relative and refit else {}),
            **({} if self.expert_criterion is None else {"experts": self._experts()}),
        }

    def _experts(self) -> list[Any]:
        """The options of widths matter to nested ladders, too: without any, neurons are not ranked."""
        narrows = self.options is None or len(self.options["width"]) > 1
        return [self.expert_criterion, narrows, self.seed if self.expert_criterion == "random" else 0]
