"""Plans as a trie over sublayers: what comes before the first difference is shared."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.space import Plan


def trie_order(plans: Sequence[Plan]) -> list[int]:
    """Indices in an order that makes plans with a common prefix neighbours."""
    return sorted(range(len(plans)), key=lambda i: tuple(s.settings for s in plans[i].sublayers))


def common(a: Plan, b: Plan) -> int:
    """How many sublayers two plans share, from the first on."""
    for depth, (x, y) in enumerate(zip(a.sublayers, b.sublayers, strict=True)):
        if x is not y and x != y:  # spaces hand out the same again and again
            return depth
    return len(a.sublayers)
