"""Shared prefixes: the same bits as one plan at a time, for fewer runs, within any bound of memory."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.models.base import State, Weights
from autoprune.models.llama import LlamaAdapter
from autoprune.space import Kind, Plan, SublayerPlan
from autoprune.supernet import Supernet
from tests import tiny

BLOCKS = 3
STATE = 2 * 7 * tiny.HIDDEN * 4  # bytes of one hidden state of `ids`


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llama(blocks=BLOCKS)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return tiny.token_ids((2, 7))


@pytest.mark.parametrize("memory", [1, STATE, 2 * STATE, 3 * STATE, 512 << 20])
@pytest.mark.parametrize("order", ["given", "reversed", "shuffled", "twice"])
def test_numbers_are_bitwise_those_of_one_plan_at_a_time(
    model: Any, ids: Tensor, make: SimpleNamespace, memory: int, order: str
) -> None:
    plans = make.plans(24, BLOCKS)
    if order == "reversed":
        plans = plans[::-1]
    elif order == "shuffled":
        plans = [plans[i] for i in np.random.default_rng(3).permutation(len(plans))]
    elif order == "twice":
        plans = plans[:8] + plans[:8][::-1]
    together = make.logits(make.supernet(model, memory), plans, ids)
    for plan, found in zip(plans, together, strict=True):
        alone = make.logits(make.supernet(model), [plan], ids)[0]
        assert torch.equal(found, alone), plan.to_json()


def test_duplicates_and_shared_prefixes_run_once(model: Any, ids: Tensor, make: SimpleNamespace) -> None:
    net = make.supernet(model)
    dense = Plan.of([(2, 48)] * 3)
    last = Plan.of([(2, 48), (2, 48), (2, 8)])
    make.logits(net, [dense, last, dense], ids)
    assert (net.telemetry.runs, net.telemetry.naive_runs) == (7, 18)


def test_less_memory_means_more_runs_never_more_than_naive(
    model: Any, ids: Tensor, make: SimpleNamespace
) -> None:
    runs = []
    for memory in (1, 2 * STATE, 512 << 20):
        net = make.supernet(model, memory)
        make.logits(net, make.plans(24, BLOCKS), ids)
        assert net.telemetry.runs <= net.telemetry.naive_runs
        runs.append(net.telemetry.runs)
    assert runs[0] > runs[1] > runs[2]


@pytest.mark.parametrize("states", [2, 3, 5])
def test_hidden_states_stay_within_the_bound(
    model: Any, ids: Tensor, make: SimpleNamespace, states: int
) -> None:
    class Counting(LlamaAdapter):
        """Counts the hidden states that are alive when a sublayer has run."""

        made: list[Any] = []
        most = 0

        def run_sublayer(
            self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
        ) -> State:
            out = super().run_sublayer(block, kind, state, weights, plan)
            self.made.append(weakref.ref(out.hidden))
            Counting.most = max(self.most, sum(ref() is not None for ref in self.made))
            return out

    adapter = Counting(model)
    net = Supernet(adapter, make.supernet(model).ladders, states * STATE)
    make.logits(net, make.plans(24, BLOCKS), ids)
    # the embedding is kept too but not counted; on top come the state that is read and the one that is made
    assert Counting.most <= states - 1 + 2


def single_site_changes(blocks: int) -> list[Plan]:
    """The dense plan, and every site lowered once."""
    dense = [(tiny.GROUPS, tiny.FFN)] * blocks
    found = [Plan.of(dense)]
    for block in range(blocks):
        for pair in ((1, tiny.FFN), (tiny.GROUPS, 24)):
            found.append(Plan.of([*dense[:block], pair, *dense[block + 1 :]]))
    return found


def level_switches(blocks: int, count: int) -> list[Plan]:
    """Children of one parent: a few pairs of sites, one lowered, one raised."""
    rng, found = np.random.default_rng(0), []
    parent = [24] * blocks
    for _ in range(count):
        child = list(parent)
        for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):
            down, up = rng.choice(blocks, 2, replace=False)
            child[down], child[up] = max(0, child[down] - 8), min(tiny.FFN, child[up] + 8)
        found.append(Plan.of([(1, width) for width in child]))
    return found


@pytest.mark.parametrize(
    ("plans", "share"),
    [(single_site_changes(12), 0.56), (level_switches(12, 32), 0.75)],
    ids=["table", "switches"],
)
def test_what_sharing_saves_at_twelve_blocks(plans: list[Plan], share: float, make: SimpleNamespace) -> None:
    net = make.supernet(tiny.llama(blocks=12))
    make.logits(net, plans, tiny.token_ids((1, 4)))
    assert net.telemetry.runs <= share * net.telemetry.naive_runs


def test_a_plan_with_everything_gone_is_embedding_and_head(
    model: Any, ids: Tensor, make: SimpleNamespace
) -> None:
    nothing = Plan.of([(0, 0)] * BLOCKS)
    net = make.supernet(model)
    found = make.logits(net, [nothing, Plan.of([(2, 48)] * 3), nothing], ids)
    with torch.inference_mode():
        hidden = model.model.embed_tokens(ids)
        wanted = model.lm_head(model.model.norm(hidden))
    assert (found[0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert torch.equal(found[0], found[2]) and net.telemetry.runs == 6


def test_no_plans_are_no_work(model: Any, ids: Tensor, make: SimpleNamespace) -> None:
    net = make.supernet(model)
    assert make.logits(net, [], ids) == [] and net.telemetry.runs == 0


def test_the_first_sublayer_that_is_not_finite_is_named(ids: Tensor, make: SimpleNamespace) -> None:
    model = tiny.llama(blocks=BLOCKS)
    dense = Plan.of([(2, 48)] * BLOCKS)
    assert make.supernet(model).first_bad_sublayer(dense, ids) == "the head"
    model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("inf")
    assert make.supernet(model).first_bad_sublayer(dense, ids) == "block 1 attention"
    model.model.embed_tokens.weight[int(ids[0, 0])] = float("nan")
    assert make.supernet(model).first_bad_sublayer(dense, ids) == "the embedding"
