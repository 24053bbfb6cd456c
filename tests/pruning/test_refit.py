"""Refit ladders: the survivors make up for what is gone, and a reference really changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.errors import SettingError
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.calibration import Stream
from autoprune.pruning.ladders import OUTPUT, StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.refit import refit_plan
from autoprune.space import KINDS, Kind, Plan, SublayerPlan
from autoprune.supernet import Ladders, Supernet
from tests import tiny

Windows = NDArray[np.int32]
Build = Callable[..., StoredLadders]
BLOCKS = 3
SMALL = Plan.of([(1, 16)] * BLOCKS)


def sublayer(kind: Kind, count: int) -> SublayerPlan:
    return SublayerPlan.of(kind, **{"kv_groups" if kind == "attention" else "width": count})


def error(model: Any, ladders: Ladders, plan: Plan, windows: Windows) -> float:
    """Mean squared distance of a plan's last hidden states from the dense model's."""
    adapter, found = LlamaAdapter(model), {}
    ids = torch.from_numpy(windows).long()
    full = Plan.of([(tiny.GROUPS, tiny.FFN)] * BLOCKS)

    class Dense:
        def weights(self, block: int, plan: SublayerPlan) -> Any:
            return adapter.weights(block, plan.kind)

    for name, net, chosen in (("dense", Dense(), full), ("plan", ladders, plan)):
        with torch.inference_mode():
            state = adapter.embed(ids)
            for at, part in enumerate(chosen.sublayers):
                if not part.gone:
                    state = adapter.run_sublayer(at // 2, part.kind, state, net.weights(at // 2, part))
        found[name] = state.hidden.double()
    return float((found["dense"] - found["plan"]).square().mean())


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_is_the_least_squares_answer(
    ladders_of: Build, windows: Windows, kind: Kind, relative: bool, follow: bool
) -> None:
    """Of tokens as they are, or of all as long as each other: either answer is no answer to the other question."""
    model, count = tiny.llama(noise=0.3), 1 if kind == "attention" else 16
    adapter = LlamaAdapter(model)
    given = {"damping": 1e-9, "relative": relative, "follow": follow}
    ladders = ladders_of(model, windows, ladder="refit", **given)
    with torch.inference_mode():
        state = adapter.embed(torch.from_numpy(windows).long())
        if kind == "ffn":
            state = adapter.run_sublayer(0, "attention", state, adapter.weights(0, "attention"))
        wanted = adapter.run_sublayer(0, kind, state, adapter.weights(0, kind)).hidden
        found = ladders.weights(0, sublayer(kind, count))
        residual = (wanted - adapter.run_sublayer(0, kind, state, found).hidden).double()
        inner = adapter.inner(0, kind, state, found).double()
    # of the best answer, what is missing is orthogonal to everything the kept columns can say
    worth = wanted.double().norm(dim=-1, keepdim=True).square().reciprocal()
    for weights, answered in ((torch.ones_like(worth), not relative), (worth, relative)):
        product = torch.einsum("btd,bto->do", inner * weights, residual)
        scale = float((inner * weights).norm() * residual.norm())
        assert (float(product.norm()) < 1e-4 * scale) == answered


def test_what_was_computed_ahead_serves_one_sublayer(windows: Windows) -> None:
    """A sublayer without moments of its own moves on by itself, not to where the one before it did."""
    adapter = LlamaAdapter(tiny.llama(noise=0.3))
    streams = [Stream(adapter, windows, 4, relative) for relative in (True, False)]
    with torch.inference_mode():
        for stream in streams:
            stream.moments(0, "attention", follow=False)
            for kind in KINDS:
                weights = adapter.weights(0, kind)
                stream.advance(0, kind, weights, weights)
        ahead, usual = (torch.cat([s.hidden for s in stream.reference]) for stream in streams)
    assert torch.equal(ahead, usual)


def test_it_keeps_columns_only_and_is_not_the_prefix(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama()
    ladders = ladders_of(model, windows, ladder="refit")
    for kind in KINDS:
        full = ladders.weights(1, sublayer(kind, tiny.GROUPS if kind == "attention" else tiny.FFN))
        count = 1 if kind == "attention" else 24
        found, name = ladders.weights(1, sublayer(kind, count)), OUTPUT[kind]
        assert (
            found[name].shape[1]
            == full[name].shape[1] * count // next(iter(ladders._units[kind].values())).count
        )
        assert not torch.allclose(found[name], full[name][:, : found[name].shape[1]], rtol=1e-3)
        assert found[name].stride() == (1, found[name].shape[0]), "stored by column"


def test_the_full_option_is_the_dense_weights(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama()
    full = Plan.of([(tiny.GROUPS, tiny.FFN)] * BLOCKS)
    assert error(model, ladders_of(model, windows, ladder="refit"), full, windows[:4]) < 1e-10


def test_what_a_twin_gave_is_made_up_for(ladders_of: Build, windows: Windows) -> None:
    """Every neuron has a twin: half of them say all there is to say, once their outputs are solved again."""
    model, half = tiny.llama(noise=0.3), tiny.FFN // 2
    for layer in model.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight[half:] = part.weight[:half]
    plan = Plan.of([(tiny.GROUPS, half)] * BLOCKS)
    nested = error(model, ladders_of(model, windows[:40], ladder="nested"), plan, windows[40:])
    refit = error(model, ladders_of(model, windows[:40], ladder="refit"), plan, windows[40:])
    assert refit < 0.01 * nested


def test_a_compressed_reference_changes_what_comes_after_it(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama(noise=0.3)
    dense = ladders_of(model, windows, ladder="refit")
    other = ladders_of(model, windows, ladder="refit", reference=SMALL)

    def output(ladders: StoredLadders, block: int, kind: Kind) -> Tensor:
        return ladders.weights(block, sublayer(kind, 1 if kind == "attention" else 16))[OUTPUT[kind]]

    assert torch.equal(output(dense, 0, "attention"), output(other, 0, "attention"))
    for block, kind in [(0, "ffn"), (1, "attention"), (2, "ffn")]:
        assert not torch.allclose(output(dense, block, kind), output(other, block, kind), rtol=1e-3)


def test_a_reference_whose_sublayers_are_gone_is_followed(ladders_of: Build, windows: Windows) -> None:
    model, gone = tiny.llama(noise=0.3), Plan.of([(0, 0), (0, 0), (2, 48)])
    dense = ladders_of(model, windows, ladder="refit")
    other = ladders_of(model, windows, ladder="refit", reference=gone)
    assert not torch.allclose(
        dense.weights(1, sublayer("ffn", 16))["down"],
        other.weights(1, sublayer("ffn", 16))["down"],
        rtol=1e-3,
    )


@pytest.mark.parametrize("plan", [SMALL, Plan.of([(1, 16), (0, 24), (2, 0)])])
def test_refitting_a_chosen_plan_brings_it_nearer_to_dense(
    ladders_of: Build, windows: Windows, plan: Plan
) -> None:
    model = tiny.llama(noise=0.3)
    recipe = LadderRecipe(windows[:40], 4)
    before = error(model, ladders_of(model, windows[:40], ladder="refit"), plan, windows[40:])
    fixed = refit_plan(LlamaAdapter(model), plan, recipe)
    after = error(model, fixed, plan, windows[40:])
    assert after < before
    found: list[Tensor] = []
    Supernet(LlamaAdapter(model), fixed).run(
        [plan], torch.from_numpy(windows[:2]).long(), lambda _, x: found.append(x)
    )
    assert bool(torch.isfinite(found[0]).all())


def test_biases_are_not_counted_twice(windows: Windows) -> None:
    """Following the dense stream with everything kept finds the dense weights again, biases or not."""
    model = tiny.llama(attention_bias=True, mlp_bias=True, noise=0.3)
    adapter = LlamaAdapter(model)
    with torch.inference_mode():
        model.model.layers[0].mlp.down_proj.bias += 1.0
        model.model.layers[0].self_attn.o_proj.bias -= 1.0
    full = Plan.of([(tiny.GROUPS, tiny.FFN)] * BLOCKS)
    fixed = refit_plan(adapter, full, LadderRecipe(windows, 4, damping=1e-6))
    assert error(model, fixed, full, windows[:4]) < 1e-6


def test_statistics_do_not_depend_on_the_chunks(windows: Windows) -> None:
    adapter = LlamaAdapter(tiny.llama(noise=0.3))
    with torch.inference_mode():
        found = [Stream(adapter, windows, n).moments(0, "ffn", follow=True) for n in (4, 48)]
    assert torch.allclose(
        found[0].cross, found[1].cross, rtol=1e-3, atol=1e-4 * float(found[1].cross.abs().max())
    )


def test_damping_pulls_towards_the_dense_weights(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama(noise=0.3)
    weight, distance = model.model.layers[0].mlp.down_proj.weight, []
    for damping in (1e-6, 1e-1, 1e3):
        ladders = ladders_of(model, windows, ladder="refit", damping=damping)
        kept = ladders.order(0, "ffn")[:16]
        found = ladders.weights(0, sublayer("ffn", 16))["down"]
        distance.append(float((found - weight[:, kept]).norm()))
    assert distance[0] > distance[1] > distance[2] and distance[2] < 1e-2 * float(weight.norm())


@pytest.mark.parametrize("ladder", ["refit", "nested"])
def test_moments_that_cannot_be_inverted_name_the_setting(
    ladders_of: Build, windows: Windows, ladder: str
) -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.up_proj.weight[7] = 0  # a neuron that is never active
    with pytest.raises(SettingError, match="calibration.damping=0 leaves moments that cannot be inverted"):
        ladders_of(model, windows, ladder=ladder, damping=0.0)


def test_units_that_are_never_active_are_no_problem(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.up_proj.weight[:] = 0
    found = ladders_of(model, windows, ladder="refit").weights(0, sublayer("ffn", 16))["down"]
    assert bool(torch.isfinite(found).all())


def test_sites_of_their_own_have_their_own_options(ladders_of: Build, windows: Windows) -> None:
    found = ladders_of(tiny.llama(), windows, ladder="refit", sites={"block1.ffn.width": (7, 13)})
    plain = ladders_of(tiny.llama(), windows, ladder="refit")
    own = {(block, kind): set() for block in range(BLOCKS) for kind in KINDS}
    for block, kind, count in found._own:
        own[block, kind].add(count)
    assert own[1, "ffn"] == {7, 13}
    assert own[0, "ffn"] == {c for b, k, c in plain._own if (b, k) == (0, "ffn")} != own[1, "ffn"]


def test_following_ladders_hold_for_their_reference_what_refitting_it_gives(
    ladders_of: Build, windows: Windows
) -> None:
    model = tiny.llama(noise=0.3)
    plan = Plan.of([(1, 16), (2, 24), (1, tiny.FFN)])
    sites = {f"block{b}.ffn.width": (w,) for b, (_, w) in enumerate(plan.widths())}
    found = ladders_of(model, windows, ladder="refit", sites=sites, reference=plan, follow=True)
    fixed = refit_plan(LlamaAdapter(model), plan, LadderRecipe(windows, 4))
    for at, part in enumerate(plan.sublayers):
        ours, theirs = found.weights(at // 2, part), fixed.weights(at // 2, part)
        same = OUTPUT[part.kind]
        assert torch.allclose(ours[same], theirs[same], atol=1e-5), (at, "the full option is refit, too")
    plain = ladders_of(model, windows, ladder="refit", sites=sites, reference=plan)
    assert error(model, found, plan, windows[:8]) < error(model, plain, plan, windows[:8])


def test_a_recipe_without_sites_keeps_its_identity(windows: Windows) -> None:
    plain = LadderRecipe(windows, 4, options={"width": (8,)})
    assert "sites" not in plain.identity(), "ladders in caches stay valid"
    own = LadderRecipe(windows, 4, options={"width": (8,)}, sites={"block0.ffn.width": (4,)})
    follows = LadderRecipe(windows, 4, options={"width": (8,)}, follow=True)
    assert len({str(r.identity()) for r in (plain, own, follows)}) == 3
