"""A space whose sublayers have several genes, so that costs multiply instead of adding up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import KINDS, OptionGene, SublayerPlan
from autoprune.sublayers import SublayerSpace, join
from search_spaces.structured import Structured
from tests.tabular import SHAPE

KEPT = (25, 50, 75, 100)


class Shares:
    """A share of every sublayer's weights, in per cent."""

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        return {"share": KEPT}

    def genes(self, shape: Shape) -> list[OptionGene]:
        return [OptionGene(b, kind, "share", KEPT) for b in range(shape.blocks) for kind in KINDS]


@dataclass(frozen=True)
class ShareCosts:
    """Kept weights: parameters times their share."""

    shape: Shape

    @property
    def base(self) -> Mapping[str, float]:
        return {"weights": 10.0}

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        whole = AnalyticCosts(self.shape).sublayer(block, plan)["params"]
        return {"weights": whole * float(plan.get("share")) / 100}


def joint_space() -> SublayerSpace:
    """KV groups or width, and a share, of every sublayer."""
    return join([Structured(), Shares()], SHAPE, [AnalyticCosts(SHAPE), ShareCosts(SHAPE)])
