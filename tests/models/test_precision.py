"""Products in bf16: of every family close to fp32, never the same, and bitwise alike in any company."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune import precision
from autoprune.precision import FULL, HALF, products_in
from autoprune.space import Plan, SublayerPlan
from autoprune.supernet import Supernet
from tests.caching import POLICIES, PROMPT, TOKENS, cut_plan
from tests.families import ENCODERS, FAMILIES, VOCABULARY
from tests.family_case import Case

ALL = {**FAMILIES, **ENCODERS}
CLOSE = 0.03  # of the root of the mean square
ELSEWHERE = 0.3  # where a rounded score may send a token elsewhere


@pytest.fixture(params=ALL, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    family = ALL[request.param]
    return Case.of(family, family.make(next(iter(family.variants))))


@pytest.fixture
def ids(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if case.adapter.shape.task == "images":
        return torch.randn(3, 2, 12, 12, generator=generator)
    return torch.randint(2, 61, (3, 14), generator=generator)


def run(case: Case, plans: list[Plan], ids: Tensor, word: str = HALF) -> list[Tensor]:
    """Logits of each plan."""
    found: dict[int, Tensor] = {}
    net = Supernet(case.adapter, SimpleNamespace(weights=case.kept))
    with products_in(word):
        net.run(plans, ids, lambda index, logits: found.update({index: logits.clone()}))
    return [found[i] for i in range(len(plans))]


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def test_logits_are_close_and_in_fp32(case: Case, ids: Tensor) -> None:
    plans = [case.plans()[name] for name in ("full", "narrow", "gone")]
    for found, exact in zip(run(case, plans, ids), run(case, plans, ids, FULL), strict=True):
        assert found.dtype == torch.float32
        assert 0 < off(found, exact) < (ELSEWHERE if case.adapter.shape.experts else CLOSE)


def test_the_residual_stream_stays_in_fp32(case: Case, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = type(case.adapter).run_sublayer

    def spied(self: Any, *given: Any) -> Any:
        state = original(self, *given)
        seen.append(state.hidden.dtype)
        return state

    monkeypatch.setattr(type(case.adapter), "run_sublayer", spied)
    run(case, [case.plans()["full"]], ids)
    assert set(seen) == {torch.float32}


def test_a_plans_bits_do_not_change_with_its_company(case: Case, ids: Tensor) -> None:
    plans = list(case.plans().values())
    for plan, found in zip(plans, run(case, plans, ids), strict=True):
        assert torch.equal(found, run(case, [plan], ids)[0]), plan.to_json()


def test_what_stands_outside_is_fp32_again(case: Case, ids: Tensor) -> None:
    plan = case.plans()["full"]
    before = run(case, [plan], ids, FULL)[0]
    run(case, [plan], ids)
    assert torch.equal(run(case, [plan], ids, FULL)[0], before)
    assert not torch.is_autocast_enabled("cpu")


def test_routers_send_tokens_where_fp32_would(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of(FAMILIES["qwen3_moe"], FAMILIES["qwen3_moe"].make("normed"))
    weights, x = case.adapter.weights(0, "ffn"), torch.randn(50, case.adapter.shape.hidden)
    exact = case.adapter.route(x, weights)
    with products_in(HALF), precision.sublayer(x.device):
        found = case.adapter.route(x, weights)
    assert torch.equal(found.logits, exact.logits)


@pytest.mark.parametrize("rule", ["attention", "cls", "pagerank", "merge"])
def test_schedules_of_tokens(rule: str) -> None:
    case = Case.of(ENCODERS["bert"], ENCODERS["bert"].make(next(iter(ENCODERS["bert"].variants))))
    sublayers = []
    for keep in (80, 100, 60):
        sublayers += [
            SublayerPlan.of("attention", kv_groups=4, **{f"keep_{rule}": keep}),
            SublayerPlan.of("ffn", width=24),
        ]
    plan, ids = Plan(tuple(sublayers)), torch.randint(2, 61, (3, 14))
    assert 0 < off(run(case, [plan], ids)[0], run(case, [plan], ids, FULL)[0]) < ELSEWHERE


@pytest.mark.parametrize("policy", POLICIES)
def test_caches_that_throw_away(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of(FAMILIES["llama"], FAMILIES["llama"].make("tied"))
    monkeypatch.setattr(case.adapter, "prompt_len", PROMPT)
    plan, ids = cut_plan(case.adapter.shape, POLICIES[policy]), torch.randint(2, VOCABULARY, (2, TOKENS))
    assert 0 < off(run(case, [plan], ids)[0], run(case, [plan], ids, FULL)[0]) < ELSEWHERE
