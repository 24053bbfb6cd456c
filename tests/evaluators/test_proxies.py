"""Proxies against figures of the built model, taken by hooks and by its own backward."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.data import Corpus
from autoprune.errors import SettingError, UnsupportedModelError
from autoprune.evaluation import Context, Evaluation, Failure, Scores
from autoprune.models.llama import LlamaAdapter
from autoprune.objective import Fidelity, Split
from autoprune.run.parts import objectives
from autoprune.space import Plan
from autoprune.supernet import Supernet
from evaluators.activation_distance import ActivationDistance
from evaluators.block_influence import BlockInfluence
from evaluators.gradient_norm import GradientNorm
from evaluators.head_confidence import HeadConfidence
from evaluators.perplexity import Perplexity
from evaluators.saliency import Saliency
from tests import tiny
from tests.prefixes import Prefixes

PROXIES: dict[str, Callable[[], Any]] = {
    "saliency": Saliency,
    "gradient_norm": GradientNorm,
    "head_confidence": HeadConfidence,
    "activation_distance": ActivationDistance,
    "block_influence": BlockInfluence,
}
PLANS = [
    Plan.of(pairs)
    for pairs in ([(2, 48)] * 3, [(2, 48), (1, 8), (2, 24)], [(2, 48), (1, 8), (1, 16)], [(1, 5)] * 3)
]
GONE = Plan.of([(2, 0), (0, 24), (1, 0)])
NOTHING = Plan.of([(0, 0)] * 3)
IDS = tiny.token_ids((3, 11))


@pytest.fixture(scope="module")
def net() -> Supernet:
    adapter = LlamaAdapter(tiny.llama(noise=0.3))
    return Supernet(adapter, Prefixes(adapter))


def found(net: Supernet, name: str, plans: list[Plan], ids: Tensor = IDS) -> Tensor:
    """Values [plans, B]."""
    columns = PROXIES[name]().measure(net, plans, ids)
    assert all(set(c) == {name} for c in columns)
    return torch.stack([c[name] for c in columns])


def built(net: Supernet, plan: Plan) -> Any:
    """The physically smaller model."""
    model = net.adapter.install(plan, net.ladders.weights, torch.float32)
    model.set_attn_implementation("eager")  # which tells its attention
    return model


def collect(module: Any, into: list[Tensor]) -> None:
    """What enters a module, from now on."""
    module.register_forward_pre_hook(lambda _, given: into.append(given[0].double()))


def by_backward(model: Any, name: str) -> Tensor:
    """The model's own loss and its parameters' gradients, sequence by sequence."""
    values = []
    for row in IDS:
        model.zero_grad()
        model(input_ids=row[None], labels=row[None]).loss.backward()
        inside = [(p.detach(), p.grad) for p in model.model.layers.parameters()]
        if name == "saliency":
            values.append(sum(float((p * g).abs().sum()) for p, g in inside))
        else:
            values.append(sum(float(g.square().sum()) for _, g in inside) ** 0.5)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", ["saliency", "gradient_norm"])
def test_gradients_are_the_built_models(net: Supernet, name: str) -> None:
    plans = [*PLANS, GONE]
    wanted = torch.stack([by_backward(built(net, plan).requires_grad_(True), name) for plan in plans])
    torch.testing.assert_close(found(net, name, plans), wanted, rtol=1e-4, atol=0)
    assert (wanted > 0.01).all()


def test_a_backward_leaves_no_trace(net: Supernet) -> None:
    held = net.ladders.weights(0, PLANS[0].at(0, "ffn"))
    before = {n: t.clone() for n, t in held.items()}
    found(net, "saliency", PLANS[:1])
    assert all(torch.equal(t, before[n]) and t.grad is None and not t.requires_grad for n, t in held.items())


def test_head_confidence_is_of_the_built_models_attention(net: Supernet) -> None:
    wanted = []
    for plan in PLANS:
        with torch.inference_mode():
            layers = built(net, plan)(input_ids=IDS, output_attentions=True).attentions
        wanted.append(sum(layer.double().max(-1).values.mean(-1).sum(-1) for layer in layers))
    torch.testing.assert_close(found(net, "head_confidence", PLANS), torch.stack(wanted), rtol=1e-5, atol=0)  # type: ignore[arg-type]


def test_attention_has_a_window() -> None:
    """A causal window of four tokens hides the rest; each row sums to one."""
    from dataclasses import replace

    adapter = LlamaAdapter(tiny.llama(noise=0.3))
    adapter.shape = replace(adapter.shape, windows=(4,) * 3)
    seen = adapter.attention(0, adapter.embed(IDS), adapter.weights(0, "attention"))
    ago = torch.arange(11)[:, None] - torch.arange(11)
    assert torch.equal(seen[0, 0] > 0, (ago >= 0) & (ago < 4))
    torch.testing.assert_close(seen.sum(-1), torch.ones(3, 4, 11))


def test_activation_distance_pair_by_pair(net: Supernet) -> None:
    for plan, values in zip(PLANS, found(net, "activation_distance", PLANS), strict=True):
        patterns: list[Tensor] = []
        model = built(net, plan)
        for layer in model.model.layers:
            collect(layer.mlp.down_proj, patterns)
        with torch.inference_mode():
            model(input_ids=IDS)
        joined = torch.cat([p > 0 for p in patterns], dim=-1)  # [B, T, units]
        pairs = list(permutations(range(11), 2))
        wanted = [sum(float((row[a] != row[b]).sum()) for a, b in pairs) / len(pairs) for row in joined]
        assert values.tolist() == pytest.approx(wanted, rel=1e-9)


def test_block_influence_between_hidden_states(net: Supernet) -> None:
    for plan, values in zip(PLANS, found(net, "block_influence", PLANS), strict=True):
        states: list[Tensor] = []
        model = built(net, plan)
        for layer in model.model.layers:  # what enters the norms is the residual stream
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                collect(norm, states)
        collect(model.model.norm, states)
        with torch.inference_mode():
            model(input_ids=IDS)
        steps = zip(states, states[1:], strict=False)
        wanted = sum(1 - functional.cosine_similarity(a, b, dim=-1).mean(-1) for a, b in steps)
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PROXIES)
def test_plans_differ(net: Supernet, name: str) -> None:
    """A proxy that says the same of every plan or sequence screens nothing."""
    values = found(net, name, [*PLANS, GONE])
    spread = values.std(0) / values.mean(0)
    assert (spread > 0.02).all() and len(values.mean(1).unique()) == len(PLANS) + 1
    assert (values[0] - values[0].mean()).abs().max() > 0
    assert found(net, name, [NOTHING]).abs().max() == 0


@pytest.mark.parametrize("name", PROXIES)
def test_neighbours_change_nothing(net: Supernet, name: str) -> None:
    together = found(net, name, PLANS)
    assert all(torch.equal(found(net, name, [p])[0], row) for p, row in zip(PLANS, together, strict=True))
    torch.testing.assert_close(found(net, name, PLANS, IDS[1:2])[:, 0], together[:, 1], rtol=1e-5, atol=0)


def test_prefixes_are_shared() -> None:
    """Plans 1 and 2 part at the last FFN: what they have in common is looked at once."""
    adapter = LlamaAdapter(tiny.llama())
    seen: list[int] = []
    original = adapter.inner
    adapter.inner = lambda block, *rest: seen.append(block) or original(block, *rest)  # type: ignore
    ActivationDistance().measure(Supernet(adapter, Prefixes(adapter)), PLANS[1:3], IDS)
    alone = 2 * 9  # nine calls a plan: three attentions, three FFNs, and each FFN once more
    assert len(seen) < alone and seen.count(0) == 3


def evaluation(net: Supernet, folder: Path, *evaluators: Any) -> Evaluation:
    """On six windows of *fitness*."""
    np.save(folder / "fitness.npy", tiny.token_ids((6, 11)).numpy().astype(np.int32))
    context = Context(lambda ids: ids, Cache(folder / "c"), "d")
    return Evaluation(net, Corpus(folder, "corpus"), evaluators, context, 2)


def test_beside_evaluators_of_logits(net: Supernet, tmp_path: Path) -> None:
    both = evaluation(net, tmp_path, Perplexity(), BlockInfluence())
    scores = both.evaluate(PLANS, Fidelity(Split.FITNESS, (0, 6)))
    wanted = found(net, "block_influence", PLANS, tiny.token_ids((6, 11))).numpy()
    for score, row in zip(scores, wanted, strict=True):
        assert isinstance(score, Scores) and "perplexity" in score.metrics
        assert score.per_window["block_influence"] == pytest.approx(row, rel=1e-5)
        assert score.metrics["block_influence"] == pytest.approx(row.mean(), rel=1e-5)


def test_alone_there_is_no_pass_of_logits(tmp_path: Path) -> None:
    adapter = LlamaAdapter(tiny.llama())
    net = Supernet(adapter, Prefixes(adapter))
    adapter.head = None  # type: ignore
    scores = evaluation(net, tmp_path, BlockInfluence()).evaluate(PLANS, Fidelity(Split.FITNESS, (0, 2)))
    assert all(isinstance(s, Scores) for s in scores) and net.telemetry.runs == 0


def test_what_is_not_finite_fails(tmp_path: Path) -> None:
    model = tiny.llama()
    model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    adapter = LlamaAdapter(model)
    broken = evaluation(Supernet(adapter, Prefixes(adapter)), tmp_path, BlockInfluence())
    scores = broken.evaluate([PLANS[0], Plan.of([(2, 48), (2, 0), (2, 48)])], Fidelity(Split.FITNESS, (0, 2)))
    assert isinstance(scores[0], Failure) and "block_influence is not finite" in scores[0].reason
    assert "from block 1 ffn on" in scores[0].reason and isinstance(scores[1], Scores)


def test_an_adapter_without_attention_weights(tmp_path: Path) -> None:
    class Without:
        def __init__(self, adapter: LlamaAdapter) -> None:
            self.adapter, self.shape, self.model = adapter, adapter.shape, adapter.model
            self.embed, self.run_sublayer = adapter.embed, adapter.run_sublayer

    adapter: Any = Without(LlamaAdapter(tiny.llama()))
    with pytest.raises(
        UnsupportedModelError, match="head_confidence needs attention weights; Without has no"
    ):
        HeadConfidence().measure(Supernet(adapter, Prefixes(adapter.adapter)), PLANS, IDS)


@pytest.mark.parametrize("name", ["head_confidence", "activation_distance"])
def test_what_is_better_when_larger_is_no_objective(net: Supernet, name: str) -> None:
    """Made small it would only make the model small; the line does not offer the same again."""
    cfg: Any = SimpleNamespace(objectives=[name, "params"])
    space: Any = SimpleNamespace(cost=lambda candidate: {"params": 1.0}, dense=None)
    with pytest.raises(SettingError, match=f"'{name}' is better when larger(?!.*did you mean '{name}')"):
        objectives(cfg, space, [PROXIES[name]()])
