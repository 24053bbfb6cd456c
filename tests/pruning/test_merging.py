"""Merged experts: what the matrices say, held while there is room, exported as they run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.cache import Cache
from autoprune.errors import SettingError
from autoprune.merging import MERGE
from autoprune.models import adapter_for
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.merging import Held, merged
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.refit import refit_plan
from autoprune.space import Plan, SublayerPlan
from autoprune.supernet import Supernet
from tests import tiny
from tests.families import EXPERTS, FAMILIES, FFN, GROUPS, STEP

WIDTH = STEP * FFN
OPTIONS = {"kv_groups": (GROUPS,), "width": (64, WIDTH), "experts": tuple(range(2, EXPERTS + 1))}


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILIES["qwen3_moe"].make("normed")


@pytest.fixture(scope="module")
def recipe() -> LadderRecipe:
    windows = tiny.token_ids((12, 16), vocabulary=61).numpy().astype(np.int32)
    return LadderRecipe(
        windows, 4, ladder="nested", criterion="activation", options=OPTIONS, expert_criterion="activation"
    )


@pytest.fixture(scope="module")
def ladders(model: Any, recipe: LadderRecipe, tmp_path_factory: pytest.TempPathFactory) -> StoredLadders:
    adapter = adapter_for(model)
    return StoredLadders(
        adapter, ladder_folder(adapter, "digest", recipe, Cache(tmp_path_factory.mktemp("ladders")))
    )


def text(rows: np.ndarray, routers: np.ndarray | None = None) -> str:
    return json.dumps([rows.tolist(), (rows if routers is None else routers).tolist()])


def ffn(kept: int, merge: str | None = None, width: int = WIDTH) -> SublayerPlan:
    plan = {"width": width, "experts": kept}
    return SublayerPlan.of("ffn", **plan, **({} if merge is None else {MERGE: merge}))


def plan_of(*sublayers: SublayerPlan) -> Plan:
    attention = SublayerPlan.of("attention", kv_groups=GROUPS)
    return Plan(tuple(part for sublayer in sublayers for part in (attention, sublayer)))


@torch.inference_mode()
def run(model: Any, ladders: StoredLadders, plan: Plan) -> torch.Tensor:
    found: list[torch.Tensor] = []
    ids = tiny.token_ids((2, 12), vocabulary=61)
    Supernet(adapter_for(model), ladders).run([plan], ids, lambda _, x: found.append(x.clone()))
    return found[0]


def test_the_identity_is_the_model_and_rows_may_stand_in_any_order(
    model: Any, ladders: StoredLadders
) -> None:
    eye = np.eye(EXPERTS)
    dense = run(model, ladders, plan_of(*[ffn(EXPERTS)] * 3))
    for rows in (eye, eye[::-1]):
        same = run(model, ladders, plan_of(*[ffn(EXPERTS, text(rows))] * 3))
        torch.testing.assert_close(same, dense, atol=1e-5, rtol=1e-5)
    first, swapped = (run(model, ladders, plan_of(*[ffn(3, text(eye[[0, 2, 1]]))] * 3)) for _ in range(2))
    torch.testing.assert_close(first, run(model, ladders, plan_of(*[ffn(3)] * 3)), atol=1e-5, rtol=1e-5)
    assert torch.equal(first, swapped)
    other = run(model, ladders, plan_of(*[ffn(3, text(eye[[0, 2, 5]]))] * 3))
    assert (other - first).abs().max() > 1e-3


def test_mixtures_are_sums_over_all_experts(ladders: StoredLadders) -> None:
    rng = np.random.default_rng(0)
    rows, routers = rng.normal(size=(2, 3, EXPERTS))
    full, found = (ladders.weights(1, ffn(*a)) for a in ((EXPERTS,), (3, text(rows, routers))))
    for name, matrix in (("gate", rows), ("up", rows), ("down", rows), ("router", routers)):
        wanted = np.tensordot(matrix, full[name].numpy(), axes=1)
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["norm"], full["norm"])
    narrow = ladders.weights(1, ffn(3, text(rows, routers), 64))
    assert narrow["gate"].shape == (3, 64, 32) and torch.allclose(
        narrow["gate"], found["gate"][:, :64], atol=1e-5
    )


def test_merged_experts_are_held_while_there_is_room(ladders: StoredLadders) -> None:
    full, texts = ladders.weights(0, ffn(EXPERTS)), [text(np.eye(EXPERTS)[[i, 5]]) for i in range(3)]
    one = sum(merged(full, texts[0])[n].nbytes for n in ("gate", "up", "down", "router"))
    held = Held(room=2 * one)
    first = held.get(0, texts[0], WIDTH, full)
    assert held.get(0, texts[0], WIDTH, full) is first
    held.get(0, texts[1], WIDTH, full)
    held.get(0, texts[0], WIDTH, full)
    held.get(0, texts[2], WIDTH, full)
    assert len(held._held) == 2 and held._bytes == 2 * one
    assert held.get(0, texts[0], WIDTH, full) is first, "what was asked for last stays"


def test_a_plan_with_merged_experts_is_built_as_it_runs(model: Any, ladders: StoredLadders) -> None:
    rows = np.random.default_rng(1).normal(size=(3, EXPERTS))
    plan = plan_of(ffn(3, text(rows)), ffn(EXPERTS), ffn(2))
    small = adapter_for(model).install(plan, ladders.weights, torch.float32)
    ids = tiny.token_ids((2, 12), vocabulary=61)
    with torch.inference_mode():
        built = small(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(built, run(model, ladders, plan), atol=1e-4, rtol=1e-4)


def test_it_cannot_be_refit(model: Any, recipe: LadderRecipe) -> None:
    plan = plan_of(*[ffn(3, text(np.eye(EXPERTS)[:3]))] * 3)
    with pytest.raises(SettingError, match="a plan with merged experts cannot be refit"):
        refit_plan(adapter_for(model), plan, recipe)
