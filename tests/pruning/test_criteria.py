"""Criteria: formulas against numbers counted by hand, gradients against the stock model's, planted importance found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.models.base import Units
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.criteria.base import Evidence, Inputs, Site
from autoprune.pruning.criteria.gradients import BLOCK, DAMPING, StoredGradients, gradient_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS
from tests import tiny

NAMES = ("block0.attention.q", "block1.ffn.down", "block1.ffn.gate")


def matrix(rows: int = 6, columns: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evidence(weight: Tensor, gradients: Mapping[str, Tensor] | None = None, **inputs: Tensor) -> Evidence:
    """A matrix with the gradients and inputs that are given; anything else is an error."""
    given = gradients or {}
    return Evidence(
        weight,
        "block0.ffn.up",
        lambda: Inputs(inputs["second"], inputs["mean"]),
        lambda: inputs["upper"],
        lambda kind: given[kind],
    )


def test_scores_of_single_weights_are_the_formulas() -> None:
    w, g, s = matrix(), matrix(seed=1), matrix(seed=2) ** 2
    second = matrix(8, 8, 3)
    second = second @ second.t()
    mean = matrix(1, 8, 4)[0] * 0.1
    of = {name: found.weights for name, found in CRITERIA.items()}
    assert torch.equal(of["magnitude"](evidence(w)), w**2)
    assert torch.equal(of["taylor"](evidence(w, {"loss": g})), (w * g).abs())
    assert torch.equal(of["nirvana"](evidence(w, {"output": g})), (w * g).abs())
    assert torch.allclose(of["fisher"](evidence(w, {"fisher": s})), w**2 / (2 * s))
    mixed = of["llm_pruner"](evidence(w, {"loss": g, "squares": s}))
    assert torch.allclose(mixed, (w * g - 0.5 * w**2 * s).abs())
    inputs = {"second": second, "mean": mean}
    assert torch.allclose(of["activation"](evidence(w, **inputs)), w**2 * second.diagonal())
    assert torch.allclose(of["flap"](evidence(w, **inputs)), w**2 * (second.diagonal() - mean**2))
    upper = torch.linalg.cholesky(torch.linalg.inv(second), upper=True)
    wanted = w**2 / torch.linalg.inv(second).diagonal()
    assert torch.allclose(of["obs"](evidence(w, upper=upper)), wanted)


def test_inputs_that_never_change_are_worth_nothing_to_flap_and_much_to_wanda() -> None:
    x = matrix(50, 8)
    x[:, 3] = 7.0
    inputs = {"second": x.t() @ x / 50, "mean": x.mean(0)}
    weight = torch.ones(6, 8)
    assert CRITERIA["flap"].weights(evidence(weight, **inputs))[:, 3].abs().max() < 1e-9
    assert CRITERIA["activation"].weights(evidence(weight, **inputs))[0].argmax() == 3


def site(up: Evidence, down: Evidence) -> Site:
    units = Units(3, {"up": (0, 2), "down": (1, 2)})
    return Site({"up": up, "down": down}, units, "down", torch.eye(6), down.weight)


def test_units_sum_over_all_that_goes_with_them() -> None:
    up, down = matrix(6, 4), matrix(5, 6, 1)
    found = CRITERIA["magnitude"].units(site(evidence(up), evidence(down)))
    wanted = [(up[2 * u : 2 * u + 2] ** 2).sum() + (down[:, 2 * u : 2 * u + 2] ** 2).sum() for u in range(3)]
    assert torch.allclose(found, torch.stack(wanted))


def test_changes_of_unlike_sign_cancel_for_taylor_only() -> None:
    up, down = matrix(6, 4), matrix(5, 6, 1)
    gradients = [torch.zeros(6, 4), torch.zeros(5, 6)]
    gradients[0][:2] = 1.0 / up[:2]
    gradients[1][:, :2] = -8.0 / 10 / down[:, :2]
    gradients[0][4, 0] = 0.5 / up[4, 0]
    kinds = {k: CRITERIA[k] for k in ("taylor", "nirvana", "llm_pruner")}
    pairs = {
        k: site(
            *(
                evidence(w, {"loss": g, "output": g, "squares": 0 * g})
                for w, g in zip((up, down), gradients, strict=True)
            )
        )
        for k in kinds
    }
    assert kinds["taylor"].order(pairs["taylor"]).tolist()[0] == 2
    for other in ("nirvana", "llm_pruner"):
        assert kinds[other].order(pairs[other]).tolist()[0] == 0


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StoredGradients]:
    windows = tiny.token_ids((5, 12)).numpy().astype(np.int32)
    cache = Cache(tmp_path_factory.mktemp("gradients"))

    def build(*kinds: str) -> StoredGradients:
        return StoredGradients(gradient_folder(LlamaAdapter(model()), "digest", windows, kinds, cache))

    return build


def model() -> Any:
    return tiny.llama(blocks=2)


def stock(objective: Callable[[Tensor, Tensor], Tensor]) -> dict[str, list[Tensor]]:
    """Gradients of the stock model, window by window."""
    dense, found = model().requires_grad_(True), {}
    paths = ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "layers.1.mlp.gate_proj")
    places = dict(zip(NAMES, paths, strict=True))
    for row in tiny.token_ids((5, 12)):
        dense.zero_grad()
        objective(dense(row[None]).logits, row[None]).backward()
        for name, path in places.items():
            found.setdefault(name, []).append(dense.model.get_submodule(path).weight.grad.clone())
    return found


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits[0, :-1], ids[0, 1:])


def test_gradients_are_those_of_the_stock_model(gradients: Callable[..., StoredGradients]) -> None:
    stored, wanted = gradients("loss", "squares"), stock(loss)
    output = stock(lambda logits, _: logits.max(dim=1).values.mean())
    for name in NAMES:
        each = torch.stack(wanted[name])
        assert torch.allclose(stored.get("loss", name), each.mean(0), atol=1e-6)
        assert torch.allclose(stored.get("squares", name), (each**2).mean(0), atol=1e-8)
        peaks = torch.stack(output[name]).mean(0)
        assert torch.allclose(gradients("output").get("output", name), peaks, atol=1e-6)
    with pytest.raises(SafetensorError):
        stored.get("fisher", NAMES[0])


def test_the_fisher_blocks_are_inverted(gradients: Callable[..., StoredGradients]) -> None:
    stored = gradients("fisher")
    for name in NAMES:
        each = torch.stack(stock(loss)[name])
        rows, columns = each.shape[1:]
        split = each.view(len(each), rows, columns // BLOCK, BLOCK)
        fisher = torch.einsum("nrbi,nrbj->rbij", split, split) / len(each)
        added = DAMPING * fisher.diagonal(dim1=-2, dim2=-1).mean()
        wanted = torch.linalg.inv(fisher.double() + added * torch.eye(BLOCK)).diagonal(dim1=-2, dim2=-1)
        assert torch.allclose(stored.get("fisher", name).double(), wanted.flatten(1), rtol=1e-3)


def test_nothing_of_embedding_norms_or_head_is_gathered(gradients: Callable[..., StoredGradients]) -> None:
    names = set(gradients("loss")._file.keys())
    assert len(names) == 2 * 7 and all(name.startswith("loss.block") for name in names)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("ladder", ["nested", "refit"])
def test_every_criterion_ranks_units_for_ladders(
    tmp_path: Path, windows: Any, criterion: str, ladder: str
) -> None:
    dense = model()
    for layer in dense.model.layers:
        for part, at in ((layer.mlp.gate_proj, 0), (layer.mlp.up_proj, 0), (layer.mlp.down_proj, 1)):
            part.weight.select(at, 11).mul_(6.0)
            part.weight.select(at, 17).mul_(1e-3)
    orders = []
    for name in ("first", "second"):
        options = {"kv_groups": (0, 1, 2), "width": (0, 24, tiny.FFN)}
        recipe = LadderRecipe(windows, 4, ladder=ladder, criterion=criterion, options=options)
        adapter = LlamaAdapter(dense)
        ladders = StoredLadders(adapter, ladder_folder(adapter, "digest", recipe, Cache(tmp_path / name)))
        orders.append([ladders.order(b, k) for b in range(2) for k in KINDS])
    assert orders[0] == orders[1]
    for order in (orders[0][1], orders[0][3]):
        assert sorted(order) == list(range(tiny.FFN))
        if criterion != "random":
            assert order.index(11) < 4 and order.index(17) > tiny.FFN - 5, "strong first, weak last"
    if criterion == "random":
        assert orders[0][1] != orders[0][3], "blocks have orders of their own"


def test_other_criteria_make_other_ladders(tmp_path: Path, windows: Any) -> None:
    adapter = LlamaAdapter(model())
    options = {"kv_groups": (0, 1, 2), "width": (0, 24, tiny.FFN)}
    found = set()
    for criterion in CRITERIA:
        recipe = LadderRecipe(windows, 4, ladder="nested", criterion=criterion, options=options)
        folder = ladder_folder(adapter, "digest", recipe, Cache(tmp_path))
        found.add(tuple(StoredLadders(adapter, folder).order(0, "ffn")))
    assert len(found) == len(CRITERIA)
