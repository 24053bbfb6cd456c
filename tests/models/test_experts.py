"""Experts: kept and used per block as the dense model would with the others out of reach."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autoprune.errors import ExportError, UnsupportedModelError
from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.roundtrip import judge, reload
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.shape import AnalyticCosts, decode_flops
from autoprune.space import KINDS, Plan, SublayerPlan, plan_cost
from tests.families import CASES, EXPERTS, FAMILIES, USED, VOCABULARY, model_of
from tests.family_case import Case, cached, difference, logits

ROUTED = ("qwen3_moe", "mixtral", "qwen2_moe", "olmoe")
NARROW = 40


def plan_of(case: Case, blocks: Sequence[tuple[int, int, int]]) -> Plan:
    """A plan that keeps all KV groups and, of each block, (width, experts, experts per token)."""
    groups = case.adapter.shape.kv_groups
    return Plan(
        tuple(
            sublayer
            for width, experts, used in blocks
            for sublayer in (
                SublayerPlan.of("attention", kv_groups=groups),
                SublayerPlan.of("ffn", width=width, experts=experts, experts_per_token=used),
            )
        )
    )


def plans(case: Case) -> dict[str, Plan]:
    full = case.adapter.shape.ffn
    return {
        "equal": plan_of(case, [(full, 4, USED)] * 3),
        "counts": plan_of(case, [(full, EXPERTS, USED), (full, 3, USED), (full, 2, USED)]),
        "used": plan_of(case, [(full, EXPERTS, 1), (full, 1, 1), (full, EXPERTS, USED)]),
        "narrow": plan_of(case, [(NARROW, 5, 1), (full, 2, 2), (0, 0, 0)]),
    }


@pytest.fixture(params=[c for c in CASES if c[0] in ROUTED], ids="-".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    name, variant = request.param
    return Case.of(FAMILIES[name], model_of(name, variant))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(3))


def out_of_reach(case: Case, plan: Plan) -> Any:
    """The dense model whose routers cannot choose lost experts, with their lost neurons set to zero."""
    twin = copy.deepcopy(case.zeroed(plan))
    for block, layer in enumerate(twin.model.layers):
        kept, used = (int(plan.at(block, "ffn").get(n)) for n in ("experts", "experts_per_token"))
        if not kept:
            continue
        gate, lost = layer.mlp.gate, EXPERTS - kept

        def among_kept(x: Tensor, gate: Any = gate, lost: int = lost, used: int = used) -> Any:
            found = x.reshape(-1, x.shape[-1]) @ gate.weight.T
            found[:, :lost] = -torch.inf
            best = found.softmax(-1).topk(used)
            normed = getattr(gate, "norm_topk_prob", True)
            shares = best.values / best.values.sum(-1, keepdim=True) if normed else best.values
            return found, shares, best.indices

        gate.forward = among_kept
    return twin


def test_kept_experts_compute_what_they_would_among_all(case: Case, ids: Tensor) -> None:
    dense = logits(case.model, ids)
    for name, plan in plans(case).items():
        wanted = logits(out_of_reach(case, plan), ids)
        assert difference(case.stream(ids, plan), wanted) <= 1e-5, name
        assert difference(logits(case.install(plan), ids), wanted) <= 1e-5, name
        assert (wanted - dense).abs().max() > 1e-3, f"{name} does nothing: the test is blind"


def test_cached_logits_equal_full_logits_and_decoding_is_greedy(case: Case, ids: Tensor) -> None:
    for name, plan in plans(case).items():
        small, wanted = case.install_mixed(plan), ids
        assert difference(cached(small, ids, None), logits(small, ids)) <= 1e-5, name
        for _ in range(3):
            wanted = torch.cat([wanted, logits(small, wanted)[:, -1:].argmax(-1)], 1)
        assert torch.equal(small.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0), wanted)


def test_costs_are_those_of_the_model_that_is_built(case: Case, ids: Tensor) -> None:
    costs = AnalyticCosts(case.adapter.shape, 14)
    for name, plan in plans(case).items():
        small, cost = case.install(plan), plan_cost(plan, costs)
        parameters = sum(p.numel() for p in small.parameters())
        inside = sum(p.numel() for p in small.model.layers.parameters())
        experts = sum(p.numel() for n, p in small.named_parameters() if ".experts." in n)
        assert (cost["params_total"], cost["params"]) == (parameters, inside), name
        assert (cost["bytes"], cost["expert_bytes"]) == (4 * parameters, 4 * experts), name
        small = copy.deepcopy(small)
        small.set_attn_implementation("eager")
        small.set_experts_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            logits(small, ids[:1])
        assert cost["flops"] == counter.get_total_flops(), name
    fewer = plan_of(case, [(case.adapter.shape.ffn, EXPERTS, 1)] * 3)
    assert decode_flops(case.adapter.shape, fewer, 8) < decode_flops(
        case.adapter.shape, case.plans()["full"], 8
    )


def test_equal_blocks_make_the_stock_class_and_others_the_mixed_one(case: Case) -> None:
    for name, plan in plans(case).items():
        assert (type(case.install(plan)) is type(case.model)) == (name == "equal"), name
    counts = [block.mlp.gate.weight.shape[0] for block in case.install(plans(case)["counts"]).model.layers]
    assert counts == [EXPERTS, 3, 2]


def test_an_expert_that_nobody_chose_goes_without_changing_a_bit(case: Case, ids: Tensor) -> None:
    adapter = copy.copy(case.adapter)
    adapter._dense = [dict(block) for block in adapter._dense]
    weights = dict(adapter._dense[1]["ffn"])
    weights["router"] = weights["router"].clone()
    with torch.inference_mode():
        state = adapter.embed(ids)
        for kind in KINDS:
            state = adapter.run_sublayer(0, kind, state, adapter.weights(0, kind))
        state = adapter.run_sublayer(1, "attention", state, adapter.weights(1, "attention"))
        x = adapter.normed(state, weights)
        first, second = weights["router"][0].clone(), weights["router"][1].clone()
        weights["router"][:4] = 9 * torch.stack(
            [first, -first, second, -second]
        )  # of each two one is above zero
        weights["router"][4:] = 0
        chosen = {e for e, *_ in adapter.route(x, weights).experts()}
        lost = sorted(set(range(EXPERTS)) - chosen)
        assert lost == [4, 5]
        keep = torch.tensor([e for e in range(EXPERTS) if e not in lost])
        fewer = adapter.all_units("ffn")["experts"].take(weights, keep)
        before, after = (adapter.run_sublayer(1, "ffn", state, w).hidden for w in (weights, fewer))
    if adapter.normalised(case.model.config):
        assert torch.equal(before, after)
    else:  # its logit was in the denominator of all shares
        assert difference(before, after) > 0


def test_checkpoints_come_back_equal_in_a_fresh_process(tmp_path: Path, ids: Tensor) -> None:
    rows = []
    for family in ROUTED:
        case = Case.of(FAMILIES[family], model_of(family, next(iter(FAMILIES[family].variants))))
        for name in ("equal", "counts", "narrow"):
            plan, folder = plans(case)[name], tmp_path / f"{family}-{name}"
            save_checkpoint(case.install(plan), None, folder, "", plan)
            rows.append((case, plan, folder))
    for (case, plan, folder), seen in zip(rows, reload([f for *_, f in rows], ids), strict=True):
        parameters = int(plan_cost(plan, AnalyticCosts(case.adapter.shape))["params_total"])
        judge(case.install(plan), folder, ids, parameters, seen)
        again = load_checkpoint(folder)
        assert torch.equal(logits(again, ids), logits(case.install(plan), ids))
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"].startswith("autoprune_") != folder.name.endswith("equal")


def test_plans_that_a_router_cannot_follow_are_refused(case: Case) -> None:
    full = case.adapter.shape.ffn
    for experts, used in ((EXPERTS + 1, 1), (2, 3), (3, 0)):
        plan = plan_of(case, [(full, experts, used)] * 3)
        with pytest.raises(
            ExportError, match=f"block 0 of the plan keeps {experts} experts, {used} per token"
        ):
            case.adapter.install(plan, case.kept, torch.float32)
    with pytest.raises(ExportError, match="experts of width 5; only multiples of 8 run"):
        case.adapter.install(plan_of(case, [(5, 2, 1)] * 3), case.kept, torch.float32)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"qwen3_moe with mlp_only_layers=\[1\] is not supported"),
        (
            "qwen2_moe",
            {"decoder_sparse_step": 2},
            "qwen2_moe with decoder_sparse_step=2 is not supported, only 1",
        ),
        ("olmoe", {"clip_qkv": 3.0}, "olmoe with clip_qkv=3.0 is not supported"),
    ],
)
def test_variants_that_would_go_wrong_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        adapter_for(FAMILIES[name].make(next(iter(FAMILIES[name].variants)), **settings))


@pytest.mark.real
def test_the_stream_equals_a_trained_model(real_data: Path) -> None:
    loaded = load_model(str(real_data / "wiki-moe"))
    case = Case.of(FAMILIES["qwen3_moe"], loaded.model)
    text = (real_data / "tinystories" / "tinystories.txt").read_text()[:4000]
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:256]).reshape(2, 128)
    assert difference(case.stream(ids), logits(loaded.model, ids)) <= 1e-5
