"""Masks of experts: each on its own, from the tokens that are sent to it; priced, built and stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.allocation import allocated
from autoprune.cache import Cache
from autoprune.export.packed import load_packed, pack_model, prove_packed, save_packed
from autoprune.models import adapter_for
from autoprune.objective import Constraint
from autoprune.patterns import pattern_of, stored_bytes
from autoprune.pruning.allocators import usual_seeds
from autoprune.pruning.allocators.base import Ground
from autoprune.pruning.allocators.owl import owl
from autoprune.pruning.allocators.stun import stun
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.masks.build import masked as masked_over
from autoprune.pruning.masks.ladders import MaskedLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.shape import AnalyticCosts, full_plan, matrices
from autoprune.space import OptionGene, Plan, SublayerPlan
from autoprune.sublayers import join
from autoprune.supernet import Supernet
from search_spaces.experts import Experts
from search_spaces.sparsity import Sparsity
from tests import tiny
from tests.families import EXPERTS, FAMILIES, USED

NAMES = ("gate", "up", "down")


@pytest.fixture(scope="module")
def adapter() -> Any:
    return adapter_for(FAMILIES["qwen3_moe"].make("normed"))


@pytest.fixture(scope="module")
def windows() -> Any:
    return tiny.token_ids((24, 16)).numpy().astype(np.int32) % 61


@pytest.fixture
def masked(adapter: Any, windows: Any, tmp_path: Path) -> Any:
    def build(method: str = "sparsegpt", memory_bytes: int = 1 << 20, experts: bool = True) -> MaskedLadders:
        recipe, cache = LadderRecipe(windows, 4, ladder="nested"), Cache(tmp_path / "cache")
        stored = StoredLadders(adapter, ladder_folder(adapter, "digest", recipe, cache))
        return masked_over(stored, adapter, "digest", recipe, cache, method, memory_bytes, experts=experts)

    return build


def plan(adapter: Any, **settings: int) -> SublayerPlan:
    named = {n.replace("_unstructured", ".unstructured"): v for n, v in settings.items()}
    return SublayerPlan.of("ffn", **{"width": adapter.shape.ffn, "experts": EXPERTS, **named})


def test_statistics_with_experts_are_an_artifact_of_their_own(masked: Any) -> None:
    attention = masked(experts=False).statistics
    assert masked(experts=True).statistics.name != attention.name
    with pytest.raises(Exception, match="tokens"):
        attention.tokens(0, 0)


def test_statistics_are_of_the_tokens_that_are_sent_to_an_expert(masked: Any, windows: Any) -> None:
    ladders = masked()
    adapter, statistics = ladders._adapter, ladders.statistics
    state = adapter.embed(torch.from_numpy(windows.astype(np.int64)))
    state = adapter.run_sublayer(0, "attention", state, adapter.weights(0, "attention"))
    weights = adapter.weights(0, "ffn")
    x, total = adapter.normed(state, weights), 0.0
    chosen = adapter.route(x, weights).chosen
    for expert in range(EXPERTS):
        seen = x[(chosen == expert).any(-1)]
        inner = adapter.activate(expert, seen, weights).double()
        total += statistics.tokens(0, expert)
        assert statistics.tokens(0, expert) == len(seen) > 0
        for matrix, passed in (("gate", seen.double()), ("up", seen.double()), ("down", inner)):
            inputs = statistics.inputs(0, "ffn", matrix, expert)
            assert torch.allclose(inputs.second, passed.t() @ passed / len(seen), atol=1e-5, rtol=1e-4)
            assert torch.allclose(inputs.mean, passed.mean(0), atol=1e-5)
    assert total == USED * windows.size


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "obs", "magnitude", "random", "flap"])
@pytest.mark.parametrize("name", NAMES)
def test_one_gene_masks_every_expert_at_exactly_its_density(masked: Any, method: str, name: str) -> None:
    ladders = masked(method)
    adapter, pattern = ladders._adapter, pattern_of("unstructured")
    before = ladders.weights(0, plan(adapter))
    after = ladders.weights(0, plan(adapter, **{f"{name}_unstructured": 37}))
    assert [n for n in after if not torch.equal(after[n], before[n])] == [name]
    for dense, expert in zip(before[name], after[name], strict=True):
        assert int((expert != 0).sum()) == pattern.kept(*expert.shape, 37)
        if method != "sparsegpt":
            assert torch.equal(expert[expert != 0], dense[expert != 0]), "mask only"
    assert not torch.equal(after[name][0] != 0, after[name][1] != 0), "each has a mask of its own"


def test_masks_do_not_depend_on_how_many_experts_stay_or_on_memory(masked: Any) -> None:
    ladders, tight = masked(), masked(memory_bytes=1)
    wanted = {f"{n}_unstructured": 50 for n in NAMES}
    whole = ladders.weights(1, plan(ladders._adapter, **wanted))
    few = tight.weights(1, plan(ladders._adapter, experts=3, **wanted))
    for name in NAMES:
        assert len(few[name]) == 3 and torch.equal(few[name], whole[name][:3])
    again = ladders.weights(1, plan(ladders._adapter, **wanted))
    assert again["up"].data_ptr() == whole["up"].data_ptr(), "made once"


def test_narrow_experts_are_masked_after_the_slice(masked: Any) -> None:
    ladders = masked("wanda")
    narrow = plan(ladders._adapter, width=8)
    before = ladders.weights(0, narrow)["down"]
    after = ladders.weights(0, plan(ladders._adapter, width=8, down_unstructured=50))["down"]
    for at, expert in enumerate(ladders._ladders.experts(0)):
        kept = ladders._ladders.order(0, "ffn")[at][:8]
        second = ladders.statistics.inputs(0, "ffn", "down", expert).second[kept][:, kept]
        scores = before[at].double() ** 2 * second.diagonal()
        lost = torch.where(after[at] == 0, scores, 0.0).sum(1)
        smallest = scores.sort(1).values[:, :4].sum(1)
        assert torch.allclose(lost, smallest)


def test_a_rare_expert_is_damped_more(masked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.pruning.masks import ladders as module

    ladders, seen = masked(), list[float]()
    real = module.factor
    monkeypatch.setattr(
        module, "factor", lambda second, damping: seen.append(damping) or real(second, damping)
    )  # type: ignore[func-returns-value]
    ladders.weights(0, plan(ladders._adapter, gate_unstructured=50))
    of = [ladders.statistics.tokens(0, e) for e in ladders._ladders.experts(0)]
    hidden = ladders._adapter.shape.hidden
    assert seen == pytest.approx([0.01 * (1 + hidden / count) for count in of]) and len(set(of)) > 1


def test_costs_are_those_of_each_expert(adapter: Any) -> None:
    costs, shape = AnalyticCosts(adapter.shape, 16), adapter.shape
    dense, kept = (
        costs.sublayer(0, plan(adapter, **m)) for m in ({}, {"up_unstructured": 35, "down_unstructured": 35})
    )
    half = costs.sublayer(0, plan(adapter, experts=4, up_unstructured=35))
    pattern, size = pattern_of("unstructured"), shape.hidden * shape.ffn
    lost = size - pattern.kept(shape.ffn, shape.hidden, 35)
    assert dense["params"] - kept["params"] == 2 * EXPERTS * lost
    assert dense["flops"] - kept["flops"] == 2 * 16 * 2 * USED * lost
    saved = [
        size * shape.bytes_per_value - stored_bytes(pattern, *sizes, 35, shape.bytes_per_value)
        for name, sizes in matrices(shape, plan(adapter)).items()
        if name != "gate"
    ]
    assert dense["bytes"] - kept["bytes"] == EXPERTS * sum(saved)
    assert dense["expert_bytes"] - kept["expert_bytes"] == EXPERTS * sum(saved)
    assert costs.sublayer(0, plan(adapter, experts=4))["params"] - half["params"] == 4 * lost


def test_a_masked_mixture_is_built_packed_and_comes_back(masked: Any, tmp_path: Path) -> None:
    ladders = masked()
    adapter, wanted = ladders._adapter, {f"{n}.unstructured": 50 for n in NAMES}
    sublayers = list(full_plan(adapter.shape).sublayers)
    sublayers[1] = SublayerPlan.of("ffn", width=adapter.shape.ffn, experts=3, **wanted)
    whole = Plan(tuple(sublayers))
    built = adapter.install(whole, ladders.weights, torch.float32)
    packed = pack_model(adapter, built, whole)
    assert sorted(packed) == sorted(f"0.ffn.{n}.{e}" for n in NAMES for e in range(3))
    save_packed(packed, tmp_path)
    assert prove_packed(adapter, built, whole, tmp_path) == sum(p.bytes for p in packed.values())
    up = ladders.weights(0, sublayers[1])["up"]
    assert torch.equal(load_packed(tmp_path)["0.ffn.up.2"].to_dense(), up[2])
    ids, found = tiny.token_ids((2, 9)) % 61, dict[int, torch.Tensor]()
    Supernet(adapter, ladders).run([whole], ids, found.__setitem__)
    assert torch.allclose(built(input_ids=ids).logits, found[0], atol=1e-4)


def test_attention_alone_needs_no_statistics_of_experts(masked: Any) -> None:
    ladders = masked("wanda", experts=False)
    adapter = ladders._adapter
    before, after = (
        ladders.weights(0, SublayerPlan.of("attention", kv_groups=adapter.shape.kv_groups, **masks))
        for masks in ({}, {"q.unstructured": 50})
    )
    assert not torch.equal(before["q"], after["q"])
    share = owl(Ground(adapter, lambda: ladders.statistics, {"q.unstructured", "experts"}))
    assert 0 < share(OptionGene(0, "attention", "q.unstructured", (50, 100)), 0.5) < 1


def test_owl_counts_the_outliers_of_experts_where_these_are_masked(masked: Any) -> None:
    ladders = masked("wanda")
    adapter, gene = ladders._adapter, OptionGene(0, "attention", "q.unstructured", (50, 100))
    settings = {"q.unstructured", "up.unstructured", "experts"}
    grounds = [
        Ground(adapter, lambda: ladders.statistics, of) for of in (settings, settings - {"up.unstructured"})
    ]
    whole, attention = (owl(ground)(gene, 0.5) for ground in grounds)
    assert whole != attention
    assert len(usual_seeds(grounds[0])) == 3, "stun's beside"


def test_stun_thins_experts_that_stay_by_owl(masked: Any) -> None:
    ladders = masked("wanda")
    adapter = ladders._adapter
    parts = (Experts(), Sparsity())
    space = join(parts, adapter.shape, [AnalyticCosts(adapter.shape)])
    ground = Ground(adapter, lambda: ladders.statistics, {g.setting for g in space.genes})
    share, inner = stun(ground), owl(ground)
    for gene in space.genes:
        assert isinstance(gene, OptionGene)
        if gene.setting.partition(".")[0] in NAMES:
            assert share(gene, 0.49) == inner(gene, 0.7) < 1.0
    limit = Constraint("expert_bytes", 0.5 * space.cost(space.dense)["expert_bytes"])
    found = allocated(space, share, limit)
    assert found is not None and not limit.violation(space.cost(found))
    sublayers = space.decode(found).sublayers[1::2]
    assert sum(int(s.get("experts")) for s in sublayers) < EXPERTS * len(sublayers)
    assert min(int(s.get("up.unstructured")) for s in sublayers) < 100
    alone = replace(ground, settings={"experts"})
    assert stun(alone)(next(g for g in space.genes if g.setting == "experts"), 1.0) == 1.0
