"""Masked ladders: exact densities after slicing, one matrix a gene, the same bits everywhere, and better by method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.cache import Cache
from autoprune.models.llama import LlamaAdapter
from autoprune.patterns import pattern_of
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.masks.bounded import Bounded
from autoprune.pruning.masks.build import masked as masked_over
from autoprune.pruning.masks.choose import mask_of
from autoprune.pruning.masks.ladders import MaskedLadders
from autoprune.pruning.masks.methods import METHODS
from autoprune.pruning.masks.packing import pack
from autoprune.pruning.masks.sparsegpt import factor, sparsegpt
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS, Kind, SublayerPlan
from autoprune.supernet import Supernet
from tests import tiny

MATRICES: dict[Kind, tuple[str, ...]] = {"attention": ("q", "k", "v", "o"), "ffn": ("gate", "up", "down")}
FULL: dict[Kind, dict[str, int]] = {"attention": {"kv_groups": tiny.GROUPS}, "ffn": {"width": tiny.FFN}}
HALF: dict[Kind, dict[str, int]] = {"attention": {"kv_groups": 1}, "ffn": {"width": 24}}


@pytest.fixture
def masked(
    ladders_of: Callable[..., StoredLadders], windows: Any, tmp_path: Path
) -> Callable[..., MaskedLadders]:
    """Masked ladders of a tiny model."""

    def build(method: str = "sparsegpt", ladder: str = "refit", memory_bytes: int = 1 << 20) -> MaskedLadders:
        model = tiny.llama(blocks=2)
        stored = ladders_of(model, windows, ladder=ladder)
        recipe, cache = LadderRecipe(windows, 4), Cache(tmp_path / "cache")
        return masked_over(stored, LlamaAdapter(model), "digest", recipe, cache, method, memory_bytes)

    return build


def plan(kind: Kind, sizes: dict[Kind, dict[str, int]], **masks: int) -> SublayerPlan:
    return SublayerPlan.of(kind, **sizes[kind], **{n.replace("_", ".", 1): v for n, v in masks.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_full_density_is_the_ladders_own_tensor(masked: Callable[..., MaskedLadders], kind: Kind) -> None:
    ladders = masked()
    whole = {f"{m}.unstructured": 100 for m in MATRICES[kind]} | {f"{m}.4": 4 for m in MATRICES[kind]}
    found = ladders.weights(1, SublayerPlan.of(kind, **FULL[kind], **whole))
    dense = ladders._adapter.weights(1, kind)
    at = torch.tensor(ladders.order(1, kind))
    for name, tensor in ladders._adapter.units(kind).take(dense, at).items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["unstructured_37", "4_2", "8x1_50", "4x4_25"])
def test_one_gene_masks_one_matrix_at_exactly_its_density(
    masked: Callable[..., MaskedLadders], method: str, kind: Kind, setting: str
) -> None:
    ladders, (text, option) = masked(method), setting.split("_")
    for sizes in (FULL, HALF):
        before = ladders.weights(0, plan(kind, sizes))
        for name in MATRICES[kind]:
            after = ladders.weights(0, plan(kind, sizes, **{f"{name}_{text}": int(option)}))
            assert [n for n in after if not torch.equal(after[n], before[n])] == [name]
            matrix, pattern = after[name], pattern_of(text)
            assert matrix.shape == before[name].shape and matrix.dtype == before[name].dtype
            assert int((matrix != 0).sum()) == pattern.kept(*matrix.shape, int(option))
            assert torch.equal(pack(matrix, pattern, int(option)).to_dense(), matrix)
            if method != "sparsegpt":
                kept = matrix != 0
                assert torch.equal(matrix[kept], before[name][kept]), "mask only"


def test_the_mask_comes_after_the_slice(masked: Callable[..., MaskedLadders]) -> None:
    ladders = masked("magnitude", "refit")
    narrow = ladders.weights(0, plan("ffn", HALF))["down"]
    found = ladders.weights(0, plan("ffn", HALF, down_unstructured=50))["down"]
    kept = mask_of(pattern_of("unstructured"), narrow.double() ** 2, 50)
    assert torch.equal(found, torch.where(kept, narrow, 0.0)), "of the refit columns, not of the dense ones"


@pytest.mark.parametrize("method", METHODS)
def test_other_processes_and_memory_bounds_give_the_same_bits(
    masked: Callable[..., MaskedLadders], method: str
) -> None:
    settings = {f"{m}_unstructured": 50 for m in MATRICES["ffn"]}
    wanted = plan("ffn", HALF, **settings)
    roomy, tight = masked(method), masked(method, memory_bytes=1)
    expected = {n: t.clone() for n, t in roomy.weights(1, wanted).items()}
    tight.weights(0, wanted)
    tight.weights(1, plan("ffn", FULL, **settings))
    assert len(tight._held) == 1
    for name, tensor in tight.weights(1, wanted).items():
        assert torch.equal(tensor, expected[name])
    assert roomy.weights(1, wanted)["up"] is roomy.weights(1, wanted)["up"], "made once"
    assert not expected["up"].is_inference(), "proxies ask for gradients"


def test_blocks_and_matrices_have_masks_of_their_own(masked: Callable[..., MaskedLadders]) -> None:
    ladders = masked("random")
    found = [ladders.weights(b, plan("ffn", FULL, up_unstructured=50, gate_unstructured=50)) for b in (0, 1)]
    masks = [(w[n] != 0) for w in found for n in ("up", "gate")]
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_bounded_keeps_the_latest_within_its_bytes() -> None:
    held = Bounded(3 * 40)
    for number in range(6):
        held.get(number, lambda: torch.zeros(10))
        held.get(0, lambda: torch.zeros(10))
    assert held.bytes == 120 and len(held) == 3
    made: list[int] = []
    held.get(0, lambda: made.append(0) or torch.zeros(10))  # type: ignore[func-returns-value]
    held.get(2, lambda: made.append(2) or torch.zeros(10))  # type: ignore[func-returns-value]
    assert made == [2], "0 was used all the time, 2 left long ago"
    assert Bounded(1).get("large", lambda: torch.ones(10)).sum() == 10


def correlated(seed: int = 0, inputs: int = 48, tokens: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of different sizes that go together, and a matrix."""
    make = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=make, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=make, dtype=torch.float64) @ mix
    x *= torch.linspace(0.1, 3.0, inputs)[torch.randperm(inputs, generator=make)]
    return x, torch.randn(40, inputs, generator=make)


@pytest.mark.parametrize(
    ("text", "option"), [("unstructured", 50), ("4", 2), ("8", 4), ("8x1", 50), ("4x4", 50)]
)
def test_updates_beat_activations_beat_magnitudes_on_the_output(text: str, option: int) -> None:
    errors = torch.zeros(4, 3)
    for seed in range(4):
        x, weight = correlated(seed)
        second, pattern = x.t() @ x / len(x), pattern_of(text)
        scores = weight.double() ** 2
        activation = mask_of(pattern, scores * second.diagonal(), option, by_row=True)
        masks = [torch.where(m, weight, 0.0) for m in (activation, mask_of(pattern, scores, option))]
        for number, found in enumerate((sparsegpt(weight, factor(second), pattern, option), *masks)):
            errors[seed, number] = ((x @ (found - weight).double().t()) ** 2).mean()
    updated, activations, magnitudes = errors.unbind(1)
    assert updated.mean() < activations.mean() < magnitudes.mean()


def test_a_single_column_that_leaves_is_made_up_for_exactly() -> None:
    """Against the closed form: later columns take what they can of the first one."""
    x, weight = correlated(inputs=5)
    weight += 4 * weight.sign()
    weight[:, 0] *= 0.001
    second = x.t() @ x / len(x)
    found = sparsegpt(weight, factor(second), pattern_of("unstructured"), 80)  # 160 of 200 weights
    assert int((found[:, 0] == 0).sum()) == 40 and bool((found[:, 1:] != 0).all())
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(5)
    target = weight.double() @ damped
    expected = torch.linalg.solve(damped[1:, 1:], target[:, 1:].t()).t()
    assert torch.allclose(found[:, 1:].double(), expected, atol=1e-5)


def test_wide_matrices_are_chosen_in_chunks_and_keep_the_exact_count() -> None:
    x, weight = correlated(inputs=300)
    second = x.t() @ x / len(x)
    for text, option in (("unstructured", 37), ("8x2", 33), ("4x32", 50), ("8", 3)):
        pattern = pattern_of(text)
        found = sparsegpt(weight, factor(second), pattern, option)
        assert torch.equal(pack(found, pattern, option).to_dense(), found)
        if not pattern.refusal(*found.shape):
            assert int((found != 0).sum()) == pattern.kept(*found.shape, option)


def test_inputs_that_never_move_lose_their_weights_and_break_nothing() -> None:
    x, weight = correlated()
    x[:, 5] = 0.0
    found = sparsegpt(weight, factor(x.t() @ x / len(x)), pattern_of("unstructured"), 50)
    assert bool(torch.isfinite(found).all()) and bool((found[:, 5] == 0).all())


def test_statistics_are_those_of_the_stream(masked: Callable[..., MaskedLadders], windows: Any) -> None:
    ladders = masked()
    adapter = ladders._adapter
    ids = torch.from_numpy(windows.astype(np.int64))
    state = adapter.embed(ids)
    for kind, matrix in (("attention", "q"), ("attention", "o"), ("ffn", "up"), ("ffn", "down")):
        passing = adapter.inner if matrix in ("o", "down") else adapter.entering
        seen = passing(0, kind, state, adapter.weights(0, kind)).reshape(ids.numel(), -1).double()  # type: ignore[arg-type]
        inputs = ladders.statistics.inputs(0, kind, matrix)  # type: ignore[arg-type]
        assert torch.allclose(inputs.second, seen.t() @ seen / len(seen), atol=1e-5, rtol=1e-4)
        assert torch.allclose(inputs.mean, seen.mean(0), atol=1e-5)
        if matrix == "o":
            state = adapter.run_sublayer(0, "attention", state, adapter.weights(0, "attention"))


def test_masked_plans_share_prefixes_and_run_like_their_weights(masked: Callable[..., MaskedLadders]) -> None:
    from autoprune.space import Plan

    ladders = masked()
    supernet = Supernet(ladders._adapter, ladders)
    blocks = [plan("attention", HALF), plan("ffn", HALF), plan("attention", FULL), plan("ffn", FULL)]
    first = Plan((*blocks[:3], plan("ffn", FULL, up_4=2)))
    second = Plan((*blocks[:3], plan("ffn", FULL, up_4=3)))
    found: dict[int, torch.Tensor] = {}
    supernet.run([first, second, Plan(tuple(blocks))], tiny.token_ids((2, 9)), found.__setitem__)
    assert supernet.telemetry.runs == 6 and supernet.telemetry.naive_runs == 12
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
