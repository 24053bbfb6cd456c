"""Fewer tokens on the way: the stream, the built model, the costs and every rule agree; masks and places stay right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.modeling import tokens, tokens_attention, tokens_cls, tokens_merge, tokens_pagerank
from autoprune.export.roundtrip import judge, reload
from autoprune.models.base import State
from autoprune.shape import PAGERANK_STEPS, AnalyticCosts, full_plan
from autoprune.space import Plan, SublayerPlan, plan_cost
from autoprune.supernet import Supernet
from tests.families import ENCODERS, TAUGHT
from tests.family_case import Case, difference, inputs, logits

FAMILIES = {**{name: ENCODERS[name] for name in ("bert", "distilbert", "vit")}, "taught": TAUGHT}
KEEPS = (60, 100, 35)


@pytest.fixture(params=FAMILIES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    family = FAMILIES[request.param]
    return Case.of(family, family.make(next(iter(family.variants))))


@pytest.fixture
def ids(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if case.adapter.shape.task == "images":
        return torch.randn(3, 2, 12, 12, generator=generator)
    ids = torch.randint(2, 61, (3, 14), generator=generator)
    ids[0, 9:], ids[2, 2:] = -1, -1
    return ids


def scheduled(
    rule: str, keeps: tuple[int, ...] = KEEPS, sizes: tuple[tuple[int, int], ...] = ((4, 24),) * 3
) -> Plan:
    """A plan with these keep ratios."""
    sublayers = []
    for (groups, width), keep in zip(sizes, keeps, strict=True):
        kept = {f"keep_{rule}": keep if groups else 0}
        sublayers += [
            SublayerPlan.of("attention", kv_groups=groups, **kept),
            SublayerPlan.of("ffn", width=width),
        ]
    return Plan(tuple(sublayers))


def states(case: Case, ids: Tensor, plan: Plan) -> list[State]:
    """Before block 0, and after every sublayer."""
    with torch.inference_mode():
        found = [case.adapter.embed(ids)]
        for at, sublayer in enumerate(plan.sublayers):
            if not sublayer.gone:
                weights = case.kept(at // 2, sublayer)
                found.append(case.adapter.run_sublayer(at // 2, sublayer.kind, found[-1], weights, sublayer))
    return found


def run(case: Case, ids: Tensor, plan: Plan) -> Tensor:
    with torch.inference_mode():
        return case.adapter.head(states(case, ids, plan)[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", tokens.RULES)
def test_the_stream_is_the_built_model(case: Case, ids: Tensor, rule: str) -> None:
    for plan in (scheduled(rule), scheduled(rule, (50, 40, 100), ((2, 24), (4, 9), (0, 24)))):
        found, small = run(case, ids, plan), case.install(plan)
        assert difference(found, logits(small, ids)) <= 1e-5
        assert difference(found, case.stream(ids, full_plan(case.adapter.shape))) > 1e-4, "the test is blind"
        case.made.clear()


@pytest.mark.parametrize("rule", tokens.RULES)
def test_keeping_all_is_exact(case: Case, ids: Tensor, rule: str) -> None:
    plan, dense = scheduled(rule, (100, 100, 100)), full_plan(case.adapter.shape)
    assert torch.equal(run(case, ids, plan), run(case, ids, dense))
    small = case.adapter.install(plan, case.kept, torch.float32)
    assert type(small) is type(case.model)


@pytest.mark.parametrize("rule", tokens.RULES)
def test_places_masks_and_sizes_stay_right(case: Case, ids: Tensor, rule: str) -> None:
    specials, found = case.adapter.shape.specials, states(case, ids, scheduled(rule))
    first, last = found[0], found[-1]
    count, rows = first.hidden.shape[1], len(ids)
    there = torch.ones(rows, count, dtype=torch.bool) if first.valid is None else first.valid
    wanted = [int(n) for n in there.sum(1)]
    for keep in KEEPS:
        wanted = [tokens.count_of(n, keep, specials) for n in wanted]
        count = tokens.count_of(count, keep, specials)
    assert last.kept is not None and last.hidden.shape[:2] == last.kept.shape == (rows, count)
    assert (last.kept.diff(dim=1) > 0).all() and (last.kept[:, :specials] == torch.arange(specials)).all()
    assert torch.equal(last.positions, last.kept)
    valid = torch.ones(rows, count, dtype=torch.bool) if last.valid is None else last.valid
    assert valid.sum(1).tolist() == wanted and (first.valid is None) == (last.valid is None)
    assert there.gather(1, last.kept)[valid].all()
    assert (last.sizes is None) == (rule != "merge")
    if last.sizes is not None:
        assert (last.sizes * valid).sum(1).tolist() == pytest.approx(there.sum(1).tolist())
        assert (last.sizes[:, :specials] == 1).all()


@pytest.mark.parametrize("rule", tokens.RULES)
def test_padding_changes_nothing(case: Case, rule: str) -> None:
    if case.adapter.shape.task == "images":
        return
    short = torch.randint(2, 61, (2, 8), generator=torch.Generator().manual_seed(5))
    padded = torch.cat([short, torch.full((2, 6), -1)], 1)
    assert difference(run(case, padded, scheduled(rule)), run(case, short, scheduled(rule))) <= 1e-5


@pytest.mark.parametrize("rule", tokens.RULES)
def test_flops_are_those_of_the_built_model(case: Case, ids: Tensor, rule: str) -> None:
    shape = case.adapter.shape
    costs = AnalyticCosts(shape, shape.tokens or ids.shape[1])
    for plan in (scheduled(rule), scheduled(rule, (30, 50, 100), ((2, 24), (4, 0), (0, 24)))):
        small = case.adapter.install(plan, case.kept, torch.float32)
        small.set_attn_implementation("eager")
        whole = ids[:1] if ids.is_floating_point() else ids[1:2]
        with FlopCounterMode(display=False) as counter:
            logits(small, whole)
        assert plan_cost(plan, costs)["flops"] == counter.get_total_flops()
    assert PAGERANK_STEPS == tokens_pagerank.STEPS


def test_plans_share_prefixes_bitwise(case: Case, ids: Tensor) -> None:
    ladders: Any = SimpleNamespace(weights=case.kept)
    plans = [scheduled(rule, (60, 100, k)) for rule in tokens.RULES for k in (35, 50)]
    together: dict[int, Tensor] = {}
    Supernet(case.adapter, ladders).run(plans, ids, lambda i, found: together.update({i: found.clone()}))
    for i, plan in enumerate(plans):
        assert torch.equal(together[i], run(case, ids, plan))


def attention_of(batch: int = 2, heads: int = 3, count: int = 7) -> tuple[Tensor, Tensor]:
    """Random attention and which tokens are no padding."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(batch, count, dtype=torch.bool)
    valid[0, 5:] = False
    scores = torch.randn(batch, heads, count, count, generator=generator)
    return scores.masked_fill(~valid[:, None, None], -torch.inf).softmax(-1), valid


def naive(rule: str, attention: np.ndarray, valid: np.ndarray, specials: int) -> np.ndarray:
    """One sequence, by loops; attention [heads, T, T]."""
    heads, count, _ = attention.shape
    if rule == "cls":
        return np.array(
            [
                np.mean([attention[h, q, t] for h in range(heads) for q in range(specials)])
                for t in range(count)
            ]
        )
    if rule == "attention":
        asks = [q for q in range(count) if valid[q]]
        return np.array(
            [np.mean([attention[h, q, t] for h in range(heads) for q in asks]) for t in range(count)]
        )
    signals = []
    for h in range(heads):
        signal = valid / valid.sum()
        for _ in range(tokens_pagerank.STEPS):
            signal = np.array(
                [sum(attention[h, q, t] * signal[q] for q in range(count)) for t in range(count)]
            )
        signals.append(signal)
    return np.sqrt(np.mean(np.square(signals), 0))


@pytest.mark.parametrize("rule", ["attention", "cls", "pagerank"])
def test_scores_by_loops(rule: str) -> None:
    attention, valid = attention_of()
    found = {
        "attention": tokens_attention.score(attention, valid),
        "cls": tokens_cls.score(attention, 2),
        "pagerank": tokens_pagerank.score(attention, valid),
    }[rule]
    for row in range(2):
        wanted = naive(rule, attention[row].double().numpy(), valid[row].numpy(), 2)
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=1e-6)


def merged(
    hidden: np.ndarray, keys: np.ndarray, alive: list[int], fewer: int
) -> dict[int, tuple[np.ndarray, int]]:
    """One sequence, by loops: survivors with their values and sizes."""
    held: Mapping[int, Any] = {t: [hidden[t].copy(), keys[t].copy(), 1] for t in alive}
    held = dict(held)
    while fewer:
        order = sorted(held)
        ones, others = order[::2], order[1::2]
        pairs = []
        for t in ones:
            like = [
                held[t][1] @ held[u][1] / np.linalg.norm(held[t][1]) / np.linalg.norm(held[u][1])
                for u in others
            ]
            if like:
                pairs.append((max(like), t, others[int(np.argmax(like))]))
        pairs = sorted(pairs, reverse=True)[:fewer]
        sums = {u: [held[u][0] * held[u][2], held[u][1] * held[u][2], held[u][2]] for _, _, u in pairs}
        for _, t, u in pairs:
            for at in (0, 1):
                sums[u][at] = sums[u][at] + held[t][at] * held[t][2]
            sums[u][2] += held[t][2]
        for _, t, _ in pairs:
            del held[t]
        for u, (h, k, n) in sums.items():
            held[u] = [h / n, k / n, n]
        fewer -= len(pairs)
    return {t: (h, n) for t, (h, _, n) in held.items()}


@pytest.mark.parametrize("fewer", [1, 3, 6])
def test_merging_by_loops(fewer: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, keys = torch.randn(2, 10, 4, generator=generator), torch.randn(2, 10, 3, generator=generator)
    alive = torch.ones(2, 10, dtype=torch.bool)
    alive[:, 0], alive[1, 8:] = False, False
    asked = torch.tensor([fewer, min(fewer, 5)])
    found, sizes, left = tokens_merge.merge(hidden, keys, torch.ones(2, 10), alive, asked)
    for row in range(2):
        places = [t for t in range(10) if alive[row, t]]
        wanted = merged(hidden[row].double().numpy(), keys[row].double().numpy(), places, int(asked[row]))
        assert [t for t in range(10) if left[row, t]] == sorted(wanted)
        for t, (values, size) in wanted.items():
            np.testing.assert_allclose(found[row, t].numpy(), values, atol=1e-5)
            assert sizes[row, t] == size


def test_what_holds_several_is_looked_at_as_much_as_they_were() -> None:
    """Merging equal tokens changes nothing (red without the sizes in the mask)."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(1, 2, 5, 4, generator=generator) for _ in range(3))
    twice = [torch.cat([x[:, :, :4], x[:, :, 3:4]], 2) for x in (key, value)]
    wanted = tokens.attend(query, *twice, None, 0.5)[0]
    alive = tokens.Alive(torch.zeros(1, 4, 8), None, torch.tensor([[1.0, 1, 1, 2]]))
    found = tokens.attend(query, key[:, :, :4], value[:, :, :4], tokens.mask_of(alive), 0.5)[0]
    torch.testing.assert_close(found, wanted)


def test_checkpoints_keep_the_schedule(tmp_path: Path) -> None:
    for name, rule in (("bert", "merge"), ("taught", "pagerank")):
        case = Case.of(FAMILIES[name], FAMILIES[name].make(next(iter(FAMILIES[name].variants))))
        generator = torch.Generator().manual_seed(3)
        probe = torch.randn(2, 2, 12, 12, generator=generator)
        if name == "bert":
            probe = torch.randint(2, 61, (2, 14), generator=generator)
            probe[0, 6:] = -1
        plan, folder = scheduled(rule, sizes=((4, 24), (2, 24), (4, 7))), tmp_path / name
        small = case.install(plan)
        save_checkpoint(small, None, folder, "", plan)
        given = inputs(case.model, probe)
        (seen,) = reload([folder], given)
        parameters = int(plan_cost(plan, AnalyticCosts(case.adapter.shape))["params_total"])
        judge(small, folder, given, parameters, seen)
        assert difference(logits(load_checkpoint(folder), probe), run(case, probe, plan)) <= 1e-5
        assert {f"{m}.py" for m in ("tokens", "tokens_merge", "tokens_pagerank")} <= {
            f.name for f in folder.glob("*.py")
        }


def test_shapes_of_states_are_not_written_into(case: Case, ids: Tensor) -> None:
    with torch.inference_mode():
        state = case.adapter.embed(ids)
        before = replace(state, hidden=state.hidden.clone())
        plan = scheduled("merge").sublayers[0]
        case.adapter.run_sublayer(0, "attention", state, case.adapter.weights(0, "attention"), plan)
    assert torch.equal(before.hidden, state.hidden)
