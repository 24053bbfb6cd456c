"""Groups that should keep everything stand first, and standing elsewhere changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.kv_policy import Streaming
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.streaming import StreamingLadders, load_errors, save_errors, streaming_errors
from autoprune.run.stream import dense_logits
from autoprune.space import Plan
from autoprune.supernet import Supernet
from tests import tiny
from tests.caching import cut_plan

PROMPT = 8
POLICY = Streaming(0, 1, 2)
GROUPS = 4
OPTIONS = {"kv_groups": tuple(range(GROUPS + 1)), "width": (0, 16, tiny.FFN)}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llama(num_attention_heads=8, num_key_value_heads=GROUPS, noise=0.3)


@pytest.fixture(scope="module")
def adapter(model: Any) -> Any:
    found = LlamaAdapter(model)
    found.prompt_len = PROMPT
    return found


@pytest.fixture(scope="module")
def recipe() -> LadderRecipe:
    return LadderRecipe(tiny.token_ids((12, 24)).numpy().astype("int32"), 4, ladder="nested", options=OPTIONS)


@pytest.fixture(scope="module")
def errors(adapter: Any, recipe: LadderRecipe, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    folder = tmp_path_factory.mktemp("errors")
    save_errors(streaming_errors(adapter, recipe, POLICY), folder)
    return load_errors(folder)


@pytest.fixture(scope="module")
def folder(adapter: Any, recipe: LadderRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ladder_folder(adapter, "digest", recipe, Cache(tmp_path_factory.mktemp("cache")))


def run(adapter: Any, ladders: StoredLadders, plan: Plan, ids: Tensor) -> Tensor:
    found: list[Tensor] = []
    Supernet(adapter, ladders).run([plan], ids, lambda _, logits: found.append(logits.clone()))
    return found[0]


def test_an_error_is_that_of_the_block_s_output(adapter: Any, recipe: LadderRecipe, errors: Tensor) -> None:
    """Of block 0, by hand: only group 2 streams, everything else stands still."""
    assert errors.shape == (3, GROUPS) and bool((errors > 0).all())
    weights, units = adapter.weights(0, "attention"), adapter.units("attention")
    order = torch.tensor([0, 1, 3, 2])  # group 2 last: the first three keep everything
    moved = units.take(weights, order)
    plan = cut_plan(adapter.shape, {"kv_full_groups": 3, "kv_sink": 1, "kv_recent": 2, "kv_full": 4}).at(
        0, "attention"
    )
    with torch.inference_mode():
        state = adapter.embed(torch.from_numpy(recipe.windows.astype("int64")))
        whole = adapter.run_sublayer(0, "attention", state, weights).hidden
        cut = adapter.run_sublayer(0, "attention", state, moved, plan).hidden
    assert (whole - cut).double().square().sum() == pytest.approx(float(errors[0, 2]), rel=1e-4)


def test_a_group_that_looks_at_nothing_far_comes_last(recipe: LadderRecipe) -> None:
    silent = tiny.llama(num_attention_heads=8, num_key_value_heads=GROUPS, noise=0.3)
    silent.model.layers[1].self_attn.v_proj.weight[2 * tiny.HEAD_DIM : 3 * tiny.HEAD_DIM] = 0.0
    adapter = LlamaAdapter(silent)
    adapter.prompt_len = PROMPT
    found = streaming_errors(adapter, recipe, POLICY)
    assert found[1, 2] == 0.0 and found[1].argsort(descending=True)[-1] == 2


def test_moving_groups_changes_nothing_but_who_streams(
    adapter: Any, folder: Path, errors: Tensor, recipe: LadderRecipe
) -> None:
    plain, sorted_ = StoredLadders(adapter, folder), StreamingLadders(adapter, folder, errors)
    ids = tiny.token_ids((2, 24), seed=9)
    for groups in (GROUPS, 3):
        plan = cut_plan(adapter.shape, {}, groups=groups)
        assert torch.allclose(run(adapter, plain, plan, ids), run(adapter, sorted_, plan, ids), atol=1e-4)
    for block in range(3):
        best = int(errors[block].argmax())
        held = sorted_.weights(block, cut_plan(adapter.shape, {}).at(block, "attention"))["k"]
        size = tiny.HEAD_DIM
        assert torch.equal(
            held[:size], adapter.weights(block, "attention")["k"][best * size : (best + 1) * size]
        )
        few = sorted_.weights(block, cut_plan(adapter.shape, {}, groups=2).at(block, "attention"))["k"]
        left = plain.order(block, "attention")[:2]
        first = max(left, key=lambda g: float(errors[block][g]))
        assert torch.equal(
            few[:size], adapter.weights(block, "attention")["k"][first * size : (first + 1) * size]
        )


def test_the_ranked_groups_are_better_kept_than_the_others(
    adapter: Any, folder: Path, errors: Tensor
) -> None:
    ids = tiny.token_ids((8, 24), seed=4)
    plan = cut_plan(adapter.shape, {"kv_full_groups": 2, "kv_sink": 1, "kv_recent": 2, "kv_full": GROUPS})
    dense = dense_logits(adapter)(ids)

    def error(ranked: Tensor) -> float:
        logits = run(adapter, StreamingLadders(adapter, folder, ranked), plan, ids)
        return float((logits - dense)[:, PROMPT:].square().mean())

    assert error(errors) < error(-errors)
