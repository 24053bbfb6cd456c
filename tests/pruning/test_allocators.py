"""Allocators: their formulas, and candidates that meet the bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.allocation import UNIFORM, Allocation, allocated
from autoprune.cache import Cache
from autoprune.config import BASELINES
from autoprune.errors import SettingError
from autoprune.merging import MergedSpace
from autoprune.models import adapter_for
from autoprune.models.llama import LlamaAdapter
from autoprune.objective import Constraint
from autoprune.pruning.allocators import ALLOCATORS, usual_seeds
from autoprune.pruning.allocators.base import Ground
from autoprune.pruning.allocators.magnitude import FLOOR, global_magnitude
from autoprune.pruning.allocators.nirvana import nirvana, nirvana_split
from autoprune.pruning.allocators.owl import SPREAD, owl
from autoprune.pruning.allocators.stun import stun
from autoprune.pruning.masks.statistics import Statistics, statistics_folder
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import OptionGene
from autoprune.sublayers import SublayerSpace, join
from search_spaces.sparsity import Sparsity
from search_spaces.structured import Structured
from tests import tiny
from tests.families import EXPERTS, FAMILIES, USED

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


@pytest.fixture(scope="module")
def ground(adapter: LlamaAdapter, statistics: Statistics) -> Ground:
    """Of a space with masks and units."""
    settings = {g.setting for g in (*Structured().genes(adapter.shape), *masks(adapter))}
    return Ground(adapter, lambda: statistics, settings)


@pytest.fixture(scope="module")
def units(ground: Ground) -> Ground:
    """Of a space with units alone."""
    return replace(ground, settings={"kv_groups", "width"})


def space_of(adapter: LlamaAdapter, *parts: Any) -> SublayerSpace | MergedSpace:
    return join(parts, adapter.shape, [AnalyticCosts(adapter.shape)])


def masks(adapter: LlamaAdapter) -> list[OptionGene]:
    return list(Sparsity().genes(adapter.shape))


def test_owl_gives_blocks_with_outliers_more_and_keeps_the_mean(
    adapter: LlamaAdapter, ground: Ground, units: Ground
) -> None:
    share = owl(ground)
    of = [share(next(g for g in masks(adapter) if g.block == b), 0.5) for b in range(3)]
    assert of[1] > of[0] and np.mean(of) == pytest.approx(0.5)
    assert max(of) - min(of) == pytest.approx(2 * SPREAD)
    assert len({share(g, 0.5) for g in masks(adapter) if g.block == 1}) == 1
    width, cache = OptionGene(1, "ffn", "width", (0, 48)), OptionGene(1, "attention", "kv_budget", (8, 16))
    assert share(width, 0.3) == 1.0, "units stay whole"
    alone = owl(units)
    assert alone(width, 0.5) == of[1] and alone(cache, 0.5) == 1.0


def test_one_threshold_for_all_matrices_with_a_floor(adapter: LlamaAdapter, ground: Ground) -> None:
    share, genes = global_magnitude(ground), masks(adapter)
    sizes = {g.name: adapter.weights(g.block, g.kind)[g.setting.partition(".")[0]].numel() for g in genes}
    for level in (0.3, 0.5, 0.9):
        kept = sum(share(g, level) * sizes[g.name] for g in genes)
        assert kept / sum(sizes.values()) == pytest.approx(level, abs=5e-3)
    small = [share(g, 0.3) for g in genes if g.block == 2]
    assert max(small) < min(share(g, 0.3) for g in genes if g.block == 0)
    floors = [share(g, 0.0) * sizes[g.name] for g in genes if g.block == 2]
    assert min(floors) >= FLOOR * sum(sizes.values()) * 0.999, "no matrix is emptied"


def test_units_keep_what_their_matrices_do(adapter: LlamaAdapter, units: Ground) -> None:
    share, genes = global_magnitude(units), list(Structured().genes(adapter.shape))
    sizes = [sum(w.numel() for w in adapter.weights(g.block, g.kind).values() if w.ndim == 2) for g in genes]
    kept = sum(share(g, 0.5) * size for g, size in zip(genes, sizes, strict=True))
    assert kept / sum(sizes) == pytest.approx(0.5, abs=5e-3)
    assert share(genes[4], 0.5) < 0.1 < share(genes[0], 0.5), "block 2 is small throughout"


def test_nirvana_s_division_is_the_published_one() -> None:
    share = nirvana_split(LLAMA_8B)
    groups, width = OptionGene(0, "attention", "kv_groups", (0, 8)), OptionGene(0, "ffn", "width", (0, 14336))
    for level, ffn, attention in ((0.5, 0.5781, 0.1720), (0.8, 0.2312, 0.0688)):
        assert 1 - share(width, level) == pytest.approx(ffn, abs=1e-4)
        assert 1 - share(groups, level) == pytest.approx(attention, abs=1e-4)
        down = OptionGene(0, "ffn", "down.unstructured", (1, 100))
        up = OptionGene(0, "attention", "q.unstructured", (1, 100))
        thinned = nirvana_split(LLAMA_8B, masks=True)
        assert (thinned(down, level), thinned(up, level)) == (share(width, level), share(groups, level))
        assert thinned(width, level) == share(down, level) == 1.0


def test_candidates_meet_the_bound_and_differ(adapter: LlamaAdapter, ground: Ground) -> None:
    space = space_of(adapter, Structured(), Sparsity())
    limit = Constraint("bytes", 0.6 * space.cost(space.dense)["bytes"])
    found = [allocated(space, a, limit) for a in usual_seeds(ground)]
    assert len(found) == 3 and len(set(found)) == 3
    for candidate in found:
        assert candidate is not None and not limit.violation(space.cost(candidate))
        for gene, value in enumerate(candidate.indices()):
            if value + 1 < len(space.genes[gene].options):  # type: ignore[union-attr]
                assert limit.violation(space.cost(candidate.with_value(gene, value + 1))), "room was left"
    assert allocated(space, owl(ground), Constraint("bytes", 1.0)) is None


def test_seeds_are_for_masks_and_units_beside_them(ground: Ground, units: Ground) -> None:
    assert len(usual_seeds(replace(ground, settings=["up.unstructured"]))) == 2
    assert usual_seeds(units) == []


@pytest.mark.parametrize("make", [owl, global_magnitude])
def test_shares_never_fall_with_the_level(
    adapter: LlamaAdapter, ground: Ground, make: Callable[[Ground], Allocation]
) -> None:
    share = make(ground)
    for gene in masks(adapter):
        row = [share(gene, level) for level in np.linspace(0, 1, 21)]
        assert row == sorted(row) and row[-1] <= 1.0


def test_every_name_has_an_allocator() -> None:
    assert tuple(ALLOCATORS) == BASELINES[1:] and BASELINES[0] == UNIFORM


@pytest.fixture(scope="module")
def routed() -> Any:
    """In the last block the experts are pairs of almost the same router row."""
    model = FAMILIES["qwen3_moe"].make("normed")
    with torch.no_grad():
        rows = model.model.layers[-1].mlp.gate.weight
        rows[1::2] = rows[::2] + 1e-3 * rows[1::2]
    return adapter_for(model)


def _unread() -> Statistics:
    raise AssertionError("it asks for statistics that it does not need")


def test_stun_takes_experts_with_like_router_rows_first(routed: Any) -> None:
    blocks, share = routed.shape.blocks, stun(Ground(routed, _unread, {"experts"}))
    genes = [OptionGene(b, "ffn", "experts", (0, *range(USED, EXPERTS + 1))) for b in range(blocks)]
    pairs = 1 - EXPERTS // 2 / (EXPERTS * blocks)
    assert [share(g, pairs) for g in genes] == [*[1.0] * (blocks - 1), 0.5]
    assert {share(g, 1.0) for g in genes} == {1.0}
    assert {share(g, 0.0) for g in genes} == {USED / EXPERTS}, "as many as a token uses"
    both, width = stun(Ground(routed, _unread, {"experts", "width"})), OptionGene(0, "ffn", "width", (0, 48))
    assert both(genes[-1], pairs**2) == 0.5 and both(width, 0.25) == 0.5
    assert both(OptionGene(0, "ffn", "experts_per_token", (1, 2)), 0.25) == 1.0


def test_allocators_say_what_they_lack(routed: Any, units: Ground) -> None:
    for make, where, line in (
        (owl, Ground(routed, _unread, {"experts"}), "owl needs masks here: in a model with experts"),
        (nirvana, Ground(routed, _unread, {"kv_groups", "width"}), "nirvana needs a model without experts"),
        (nirvana, replace(units, settings={"kv_budget"}), "nirvana needs KV groups and FFN widths, or masks"),
        (stun, units, "stun needs experts among what the space changes"),
    ):
        with pytest.raises(SettingError, match=line):
            make(where)
