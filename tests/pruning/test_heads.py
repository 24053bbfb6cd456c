"""Query heads inside KV groups: which go, what is solved anew, and that every gene changes its own block only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.export.checkpoint import save_checkpoint
from autoprune.export.roundtrip import prove
from autoprune.models import adapter_for
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.heads import HeadLadders, build_heads
from autoprune.pruning.recipe import LADDERS, LadderRecipe
from autoprune.shape import AnalyticCosts, full_plan
from autoprune.space import Plan, SublayerPlan, plan_cost
from autoprune.supernet import Supernet
from tests.families import CASES, VOCABULARY, model_of
from tests.family_case import difference, logits

IDS = torch.randint(VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(2))
GROUPED = [(n, v) for n, v in CASES if n != "olmoe" and adapter_for(model_of(n, v)).shape.heads_per_group > 1]


def ladders_of(adapter: Any, folder: Path, ladder: str = "refit") -> HeadLadders:
    """Of any model."""
    options = {"kv_groups": tuple(range(adapter.shape.kv_groups + 1)), "width": (0, adapter.shape.ffn)}
    recipe = LadderRecipe(IDS.numpy().astype("int32"), 2, ladder=ladder, options=options)
    build_heads(adapter, recipe, folder)
    return HeadLadders(adapter, ladder_folder(adapter, "digest", recipe, Cache(folder)), folder, recipe)


def plan_of(shape: Any, *heads: int, groups: tuple[int, ...] | None = None) -> Plan:
    """So many query heads a group in every block."""
    found = []
    for block, count in enumerate(heads):
        kept = shape.kv_groups if groups is None else groups[block]
        found.append(SublayerPlan.of("attention", kv_groups=kept, group_heads=count if kept else 0))
        found.append(SublayerPlan.of("ffn", width=shape.ffn))
    return Plan(tuple(found))


def run(adapter: Any, ladders: HeadLadders, plan: Plan) -> Tensor:
    """Logits on a supernet."""
    found: list[Tensor] = []
    Supernet(adapter, ladders).run([plan], IDS, lambda _, logits: found.append(logits))
    return found[0]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, HeadLadders]:
    """Four query heads a group."""
    from tests.tiny import llama

    adapter: Any = adapter_for(llama(num_attention_heads=8, vocab_size=VOCABULARY))
    return adapter, ladders_of(adapter, tmp_path_factory.mktemp("heads"))


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize(("name", "variant"), GROUPED)
def test_every_plan_is_the_model_that_is_built(name: str, variant: str, ladder: str, tmp_path: Path) -> None:
    adapter: Any = adapter_for(model_of(name, variant))
    ladders, whole = ladders_of(adapter, tmp_path, ladder), adapter.shape.heads_per_group
    costs = AnalyticCosts(adapter.shape)
    assert (
        difference(run(adapter, ladders, plan_of(adapter.shape, *[whole] * 3)), logits(adapter.model, IDS))
        <= 1e-5
    )
    groups = adapter.shape.kv_groups
    for plan in (plan_of(adapter.shape, 1, whole, 1), plan_of(adapter.shape, 1, 1, 1, groups=(groups, 1, 0))):
        model = adapter.install(plan, ladders.weights, torch.float32)
        assert difference(logits(model, IDS), run(adapter, ladders, plan)) <= 1e-5
        cost = plan_cost(plan, costs)
        assert cost["params_total"] == sum(p.numel() for p in model.parameters())
        assert (run(adapter, ladders, plan) - logits(adapter.model, IDS)).abs().max() > 1e-3


def test_a_gene_changes_its_block_and_nothing_before(case: tuple[Any, HeadLadders]) -> None:
    adapter, ladders = case
    dense = plan_of(adapter.shape, 4, 4, 4)
    for heads in (1, 2, 3):
        plan = plan_of(adapter.shape, 4, heads, 4)
        states = [adapter.embed(IDS)] * 2
        for at, (old, new) in enumerate(zip(dense.sublayers, plan.sublayers, strict=True)):
            weights = [ladders.weights(at // 2, s) for s in (old, new)]
            same = {
                n: torch.equal(t, weights[1][n]) for n, t in weights[0].items() if n in ("k", "v", "norm")
            }
            assert all(same.values()) and weights[1].keys() == weights[0].keys()
            states = [
                adapter.run_sublayer(at // 2, s.kind, state, w, s)
                for s, state, w in zip((old, new), states, weights, strict=True)
            ]
            assert torch.equal(states[0].hidden, states[1].hidden) == (at < 2)
        kept = ladders.weights(1, plan.at(1, "attention"))
        size = adapter.shape.head_dim * adapter.shape.kv_groups * heads
        assert kept["q"].shape[0] == kept["o"].shape[1] == size


def test_costs_fall_by_heads_and_the_cache_stays(case: tuple[Any, HeadLadders]) -> None:
    adapter, _ = case
    costs = [plan_cost(plan_of(adapter.shape, 4, h, 4), AnalyticCosts(adapter.shape)) for h in (1, 2, 3, 4)]
    shape = adapter.shape
    step = shape.kv_groups * shape.head_dim * shape.hidden * 2
    assert [round(b["params"] - a["params"]) for a, b in zip(costs, costs[1:], strict=False)] == [step] * 3
    assert costs[0]["flops"] < costs[3]["flops"] and len({c["kv_bytes"] for c in costs}) == 1
    assert costs[3] == plan_cost(full_plan(shape), AnalyticCosts(shape))


def test_heads_that_give_nothing_go_first_and_cost_nothing(tmp_path: Path) -> None:
    """In every group other ones: those whose output the projection ignores."""
    from tests.tiny import llama

    model = llama(num_attention_heads=8, vocab_size=VOCABULARY)
    dead = {0: (1, 6), 1: (3, 4), 2: (0, 7)}  # one in each of two groups of four
    with torch.no_grad():
        for block, heads in dead.items():
            for head in heads:
                model.model.layers[block].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0.0
    adapter: Any = adapter_for(model)
    for ladder in LADDERS:
        (tmp_path / ladder).mkdir()
        ladders = ladders_of(adapter, tmp_path / ladder, ladder)
        for block, heads in dead.items():
            kept = ladders.heads(block, [0, 1], 3) + torch.tensor([[0], [4]])
            assert set(kept.flatten().tolist()) == set(range(8)) - set(heads)
        found = run(adapter, ladders, plan_of(adapter.shape, 3, 3, 3))
        assert difference(found, logits(model, IDS)) <= (1e-5 if ladder == "nested" else 1e-2)


def test_solving_anew_is_nearer_to_the_dense_output(case: tuple[Any, HeadLadders], tmp_path: Path) -> None:
    adapter, refit = case
    nested = ladders_of(adapter, tmp_path, "nested")
    state, dense = adapter.embed(IDS), adapter.weights(0, "attention")
    wanted = adapter.run_sublayer(0, "attention", state, dense).hidden
    plan = plan_of(adapter.shape, 2, 4, 4).at(0, "attention")
    errors = [
        float(
            (adapter.run_sublayer(0, "attention", state, some.weights(0, plan), plan).hidden - wanted)
            .square()
            .sum()
        )
        for some in (refit, nested)
    ]
    assert errors[0] < errors[1]


def test_a_checkpoint_comes_back(case: tuple[Any, HeadLadders], tmp_path: Path) -> None:
    adapter, ladders = case
    for name, plan in {
        "mixed": plan_of(adapter.shape, 1, 4, 3, groups=(2, 1, 2)),
        "equal": plan_of(adapter.shape, 2, 2, 2),
    }.items():
        model = adapter.install(plan, ladders.weights, torch.float32)
        assert (type(model) is type(adapter.model)) == (name == "equal")
        save_checkpoint(model, None, tmp_path / name, "card", plan)
        expected = int(plan_cost(plan, AnalyticCosts(adapter.shape))["params_total"])
        assert prove(model, tmp_path / name, IDS, expected).max_logit_difference <= 1e-4
