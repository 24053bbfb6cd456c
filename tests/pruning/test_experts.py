"""Experts and their neurons: what is counted, how they are ranked, and the ladders that come of it."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.models import adapter_for
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.calibration import Stream
from autoprune.pruning.criteria.experts import EXPERT_CRITERIA
from autoprune.pruning.expert_statistics import ExpertStatistics, gather
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.refit import refit_plan
from autoprune.space import Plan, SublayerPlan
from autoprune.supernet import Supernet
from tests import tiny
from tests.families import EXPERTS, FAMILIES, FFN, GROUPS, STEP, USED

Windows = NDArray[np.int32]
WIDTH = STEP * FFN
OPTIONS = {"kv_groups": (0, 1, GROUPS), "width": (0, 64, 128, WIDTH), "experts": tuple(range(2, EXPERTS + 1))}


def model_of(family: str = "qwen3_moe", variant: str = "normed") -> Any:
    """Experts of unlike size, so that there is something to rank."""
    model = FAMILIES[family].make(variant)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.experts.down_proj *= 3 * torch.tensor([1.0, 0.1, 0.7, 0.4, 0.05, 1.5])[:, None, None]
    return model


@pytest.fixture(scope="module")
def windows() -> Windows:
    return tiny.token_ids((24, 16), vocabulary=61).numpy().astype(np.int32)


def statistics(model: Any, windows: Windows, chunk: int = 4) -> ExpertStatistics:
    """Of block 0, behind its attention."""
    adapter = adapter_for(model)
    with torch.inference_mode():
        stream, dense = Stream(adapter, windows, chunk), adapter.weights(0, "attention")
        stream.advance(0, "attention", dense, dense)
        return gather(adapter, 0, stream.reference, neurons=True)


def by_hand(model: Any, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the experts of block 0 [N, d], router logits [N, experts] and every expert's output [E, N, d]."""
    seen: list[Tensor] = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(windows).long(), use_cache=False)
        hook.remove()
        x, mlp = seen[0].flatten(0, 1), model.model.layers[0].mlp
        gate, up = (x @ mlp.experts.gate_up_proj.mT).chunk(2, -1)
        return x, x @ mlp.gate.weight.T, (functional.silu(gate) * up) @ mlp.experts.down_proj.mT


@pytest.mark.parametrize(("family", "variant"), [("qwen3_moe", "normed"), ("olmoe", "untied")])
def test_statistics_are_those_of_the_stock_model(family: str, variant: str, windows: Windows) -> None:
    model = model_of(family, variant)
    found, (_, logits, outputs) = statistics(model, windows), by_hand(model, windows)
    chosen = logits.topk(USED).indices
    shares = logits.gather(1, chosen).softmax(-1)
    for expert in range(EXPERTS):
        tokens, slots = (chosen == expert).nonzero(as_tuple=True)
        norms = outputs[expert, tokens].norm(dim=-1) * shares[tokens, slots]
        assert float(found.count[expert]) == len(tokens)
        assert float(found.output[expert]) == pytest.approx(float(norms.sum()), rel=1e-4)
        first = chosen[:, 0] == expert
        assert float(found.first_logit[expert]) == pytest.approx(float(logits[first, expert].sum()), rel=1e-4)
    assert found.tokens == windows.size


def test_they_do_not_depend_on_the_chunks(windows: Windows) -> None:
    one, other = (statistics(model_of(), windows, chunk) for chunk in (4, 24))
    assert torch.equal(one.count, other.count) and one.second is not None and other.second is not None
    assert torch.allclose(one.output, other.output, rtol=1e-5)
    assert torch.allclose(one.second, other.second, rtol=1e-3, atol=1e-4 * float(one.second.abs().max()))


def test_criteria_rank_by_what_they_say(windows: Windows) -> None:
    found = statistics(model_of(), windows)
    orders = {n: rank(found, (0, 0)).tolist() for n, rank in EXPERT_CRITERIA.items()}
    assert all(sorted(order) == list(range(EXPERTS)) for order in orders.values())
    scores = {
        "activation": found.output / found.count.clamp(min=1),
        "frequency": found.count,
        "tcess": found.first_logit / found.tokens,
    }
    for name, score in scores.items():
        assert orders[name] == score.argsort(descending=True, stable=True).tolist(), name
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_what_activation_keeps_is_among_the_best_subsets(windows: Windows) -> None:
    """All subsets of 4 experts are the oracle, by the error of the layer's output."""
    model = model_of()
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[[1, 4]] *= 0.1  # chosen for lack of better ones
    found, (_, logits, outputs) = statistics(model, windows), by_hand(model, windows)

    def layer(kept: tuple[int, ...]) -> Tensor:
        among = torch.full_like(logits, -torch.inf)
        among[:, list(kept)] = logits[:, list(kept)]
        best = among.topk(USED)
        picked = outputs.transpose(0, 1).gather(1, best.indices[:, :, None].expand(-1, -1, outputs.shape[-1]))
        return (picked * best.values.softmax(-1)[:, :, None]).sum(1)

    dense = layer(tuple(range(EXPERTS)))
    errors = {kept: float((layer(kept) - dense).square().sum()) for kept in combinations(range(EXPERTS), 4)}
    ranked = sorted(errors, key=errors.__getitem__)
    kept = tuple(sorted(EXPERT_CRITERIA["activation"](found, (0, 0))[:4].tolist()))
    assert ranked.index(kept) < 3, f"{kept} is number {ranked.index(kept) + 1} of {len(ranked)}"


def test_of_twin_experts_one_leaves_first(windows: Windows) -> None:
    model = model_of()
    with torch.no_grad():
        mlp = model.model.layers[0].mlp
        for tensor in (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj):
            tensor[4] = tensor[1] + 1e-3 * tensor[4]
    order = EXPERT_CRITERIA["clusters"](statistics(model, windows), (0, 0)).tolist()
    assert order[-1] in (1, 4)


def test_random_orders_are_those_of_seed_and_block(windows: Windows) -> None:
    found, rank = statistics(model_of(), windows), EXPERT_CRITERIA["random"]
    orders = [rank(found, draw).tolist() for draw in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def ladders_of(model: Any, windows: Windows, folder: Path, **settings: Any) -> StoredLadders:
    adapter = adapter_for(model)
    recipe = LadderRecipe(
        windows,
        4,
        options=OPTIONS,
        expert_criterion="activation",
        **{"ladder": "nested", "criterion": "activation", **settings},
    )
    return StoredLadders(adapter, ladder_folder(adapter, "digest", recipe, Cache(folder)))


def ffn(width: int, experts: int, used: int = USED) -> SublayerPlan:
    return SublayerPlan.of("ffn", width=width, experts=experts, experts_per_token=used)


def plan_of(*sublayers: SublayerPlan) -> Plan:
    attention = SublayerPlan.of("attention", kv_groups=GROUPS)
    return Plan(tuple(part for sublayer in sublayers for part in (attention, sublayer)))


@torch.inference_mode()
def error(model: Any, ladders: Any, plan: Plan, windows: Windows) -> float:
    ids, found = torch.from_numpy(windows).long(), list[Tensor]()
    Supernet(adapter_for(model), ladders).run([plan], ids, lambda _, x: found.append(x.clone()))
    return float((found[0] - model(input_ids=ids, use_cache=False).logits).square().mean())


@pytest.mark.parametrize("ladder", ["nested", "refit"])
def test_ladders_hold_the_most_important_experts_and_neurons(
    windows: Windows, tmp_path: Path, ladder: str
) -> None:
    model = model_of()
    found = ladders_of(model, windows, tmp_path, ladder=ladder)
    dense = adapter_for(model).weights(1, "ffn")
    experts, neurons = found.experts(1), found.order(1, "ffn")
    held = found.weights(1, ffn(64, 3))
    assert {n: list(t.shape) for n, t in held.items() if n != "norm"} == {
        "router": [3, 32],
        "gate": [3, 64, 32],
        "up": [3, 64, 32],
        "down": [3, 32, 64],
    }
    for at, expert in enumerate(experts[:3]):
        rows = neurons[at][:64]
        assert torch.equal(held["router"][at], dense["router"][expert])
        assert torch.equal(held["gate"][at], dense["gate"][expert][rows])
        same = torch.equal(held["down"][at], dense["down"][expert][:, rows])
        assert same == (ladder == "nested")
    assert neurons[0][:64] != neurons[1][:64], "every expert has an order of its own"
    full = found.weights(1, ffn(WIDTH, EXPERTS))
    assert held["gate"].data_ptr() == full["gate"].data_ptr(), "a view, not a copy"
    assert held["router"].data_ptr() == full["router"].data_ptr()
    if ladder == "nested":
        assert held["down"].data_ptr() == full["down"].data_ptr()
    assert all(w.stride() in ((64, 1), (1, 32)) for w in held["down"]), "as the fast product wants it"


def test_the_full_plan_is_the_dense_model(windows: Windows, tmp_path: Path) -> None:
    model, full = model_of(), plan_of(*[ffn(WIDTH, EXPERTS)] * 3)
    for ladder in ("nested", "refit"):
        assert error(model, ladders_of(model, windows, tmp_path, ladder=ladder), full, windows[:4]) < 1e-9


@pytest.mark.parametrize(("family", "variant"), [("qwen3_moe", "normed"), ("qwen2_moe", "untied")])
@pytest.mark.parametrize("count", [8, 160])
def test_refitting_widths_brings_them_nearer_to_dense(
    tmp_path: Path, family: str, variant: str, count: int
) -> None:
    model, plan = model_of(family, variant), plan_of(*[ffn(64, EXPERTS)] * 3)
    windows = tiny.token_ids((count + 16, 16), vocabulary=61).numpy().astype(np.int32)
    nested, refit = (
        error(
            model,
            ladders_of(model, windows[16:], tmp_path, ladder=n),
            plan,
            windows[:16],
        )
        for n in ("nested", "refit")
    )
    assert refit < (0.9 if count == 160 else 1.02) * nested, "few tokens do no harm"


def test_a_compressed_reference_and_a_chosen_plan_are_followed(windows: Windows, tmp_path: Path) -> None:
    model, plan = model_of(), plan_of(ffn(64, 3, 1), SublayerPlan.of("ffn", width=0, experts=0), ffn(128, 4))
    plain = ladders_of(model, windows, tmp_path, ladder="refit")
    other = ladders_of(model, windows, tmp_path, ladder="refit", reference=plan)
    small = ffn(64, EXPERTS)
    assert torch.equal(plain.weights(0, small)["down"], other.weights(0, small)["down"])
    assert not torch.allclose(plain.weights(2, small)["down"], other.weights(2, small)["down"], rtol=1e-3)
    recipe = LadderRecipe(windows, 4, criterion="activation", options=OPTIONS, expert_criterion="activation")
    fixed = refit_plan(adapter_for(model), plan, recipe)
    assert error(model, fixed, plan, windows) < error(model, plain, plan, windows)


def test_neurons_are_ranked_only_where_widths_are_options(windows: Windows, tmp_path: Path) -> None:
    options = {"kv_groups": (GROUPS,), "width": (WIDTH,), "experts": OPTIONS["experts"]}
    model = model_of()
    found = ladders_of(model, windows, tmp_path, ladder="refit")
    adapter = adapter_for(model)
    recipe = LadderRecipe(windows, 4, options=options, expert_criterion="activation")
    plain = StoredLadders(adapter, ladder_folder(adapter, "digest", recipe, Cache(tmp_path)))
    assert plain.order(0, "ffn")[0] == list(range(WIDTH)) != found.order(0, "ffn")[0]
    assert plain.experts(0) == found.experts(0)


def test_what_decides_experts_is_in_a_recipe_s_identity(windows: Windows) -> None:
    plain = LadderRecipe(windows, 4, options=OPTIONS)
    assert "experts" not in plain.identity(), "ladders of other models stay valid"
    recipes = [
        dataclasses.replace(plain, expert_criterion="activation"),
        dataclasses.replace(plain, expert_criterion="frequency"),
        dataclasses.replace(plain, expert_criterion="random"),
        dataclasses.replace(plain, expert_criterion="random", seed=1),
        dataclasses.replace(plain, expert_criterion="activation", options={**OPTIONS, "width": (WIDTH,)}),
    ]
    assert len({str(r.identity()) for r in recipes}) == len(recipes)
