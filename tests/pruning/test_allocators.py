"""Allocators: their formulas, and candidates that meet the bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autoprune.allocation import Allocation, allocated
from autoprune.cache import Cache
from autoprune.models.llama import LlamaAdapter
from autoprune.objective import Constraint
from autoprune.pruning.allocators import allocations
from autoprune.pruning.allocators.magnitude import FLOOR, global_magnitude
from autoprune.pruning.allocators.nirvana import nirvana_split
from autoprune.pruning.allocators.owl import SPREAD, owl
from autoprune.pruning.masks.statistics import Statistics, statistics_folder
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import OptionGene
from autoprune.sublayers import SublayerSpace, join
from search_spaces.sparsity import Sparsity
from search_spaces.structured import Structured
from tests import tiny

LLAMA_8B = Shape("llama", 32, 4096, 32, 8, 128, 14336, 128256, False)


@pytest.fixture(scope="module")
def adapter() -> LlamaAdapter:
    """Block 1 has a few large weights, block 2 is small throughout."""
    model = tiny.llama(blocks=3)
    model.model.layers[1].mlp.up_proj.weight[::5, ::7] *= 40
    for part in (model.model.layers[2].mlp, model.model.layers[2].self_attn):
        for parameter in part.parameters():
            parameter *= 0.05
    return LlamaAdapter(model)


@pytest.fixture(scope="module")
def statistics(adapter: LlamaAdapter, windows: Any, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    cache = Cache(tmp_path_factory.mktemp("statistics"))
    return Statistics(statistics_folder(adapter, "digest", windows, 4, cache))


def space_of(adapter: LlamaAdapter, *parts: Any) -> SublayerSpace:
    return join(parts, adapter.shape, [AnalyticCosts(adapter.shape)])


def masks(adapter: LlamaAdapter) -> list[OptionGene]:
    return list(Sparsity().genes(adapter.shape))


def test_owl_gives_blocks_with_outliers_more_and_keeps_the_mean(
    adapter: LlamaAdapter, statistics: Statistics
) -> None:
    share = owl(adapter, statistics)
    of = [share(next(g for g in masks(adapter) if g.block == b), 0.5) for b in range(3)]
    assert of[1] > of[0] and np.mean(of) == pytest.approx(0.5)
    assert max(of) - min(of) == pytest.approx(2 * SPREAD)
    assert len({share(g, 0.5) for g in masks(adapter) if g.block == 1}) == 1
    assert share(OptionGene(0, "ffn", "width", (0, 48)), 0.3) == 1.0, "units stay whole"


def test_one_threshold_for_all_matrices_with_a_floor(adapter: LlamaAdapter) -> None:
    share, genes = global_magnitude(adapter), masks(adapter)
    sizes = {g.name: adapter.weights(g.block, g.kind)[g.setting.partition(".")[0]].numel() for g in genes}
    for level in (0.3, 0.5, 0.9):
        kept = sum(share(g, level) * sizes[g.name] for g in genes)
        assert kept / sum(sizes.values()) == pytest.approx(level, abs=5e-3)
    small = [share(g, 0.3) for g in genes if g.block == 2]
    assert max(small) < min(share(g, 0.3) for g in genes if g.block == 0)
    floors = [share(g, 0.0) * sizes[g.name] for g in genes if g.block == 2]
    assert min(floors) >= FLOOR * sum(sizes.values()) * 0.999, "no matrix is emptied"


def test_nirvana_s_division_is_the_published_one() -> None:
    share = nirvana_split(LLAMA_8B)
    groups, width = OptionGene(0, "attention", "kv_groups", (0, 8)), OptionGene(0, "ffn", "width", (0, 14336))
    for level, ffn, attention in ((0.5, 0.5781, 0.1720), (0.8, 0.2312, 0.0688)):
        assert 1 - share(width, level) == pytest.approx(ffn, abs=1e-4)
        assert 1 - share(groups, level) == pytest.approx(attention, abs=1e-4)


def test_candidates_meet_the_bound_and_differ(adapter: LlamaAdapter, statistics: Statistics) -> None:
    space = space_of(adapter, Structured(), Sparsity())
    settings = sorted({g.setting for g in space.genes})
    limit = Constraint("bytes", 0.6 * space.cost(space.dense)["bytes"])
    found = [allocated(space, a, limit) for a in allocations(adapter, statistics, settings)]
    assert len(found) == 3 and len(set(found)) == 3
    for candidate in found:
        assert candidate is not None and not limit.violation(space.cost(candidate))
        for gene, value in enumerate(candidate.indices()):
            if value + 1 < len(space.genes[gene].options):  # type: ignore[union-attr]
                assert limit.violation(space.cost(candidate.with_value(gene, value + 1))), "room was left"
    assert allocated(space, owl(adapter, statistics), Constraint("bytes", 1.0)) is None


def test_units_alone_are_nirvana_s(adapter: LlamaAdapter, statistics: Statistics) -> None:
    assert len(allocations(adapter, statistics, ["up.unstructured"])) == 2


@pytest.mark.parametrize("make", [lambda a, s: owl(a, s), lambda a, s: global_magnitude(a)])
def test_shares_never_fall_with_the_level(
    adapter: LlamaAdapter, statistics: Statistics, make: Callable[..., Allocation]
) -> None:
    share = make(adapter, statistics)
    for gene in masks(adapter):
        row = [share(gene, level) for level in np.linspace(0, 1, 21)]
        assert row == sorted(row) and row[-1] <= 1.0
