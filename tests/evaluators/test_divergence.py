"""Top-k KL against full distributions computed by other means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.errors import SettingError
from autoprune.evaluation import Batch, Context
from autoprune.models.llama import LlamaAdapter
from autoprune.models.load import load_model
from autoprune.objective import Split
from autoprune.run.stream import dense_logits
from evaluators import divergence
from evaluators.divergence import Divergence, _drawn

MakeLogits = Callable[..., Tensor]
MakeContext = Callable[[Tensor], Context]


def softmax(logits: Tensor) -> np.ndarray:
    """In fp64, by numpy."""
    x = logits.double().numpy()
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def full_kl(dense: Tensor, other: Tensor) -> np.ndarray:
    """Mean KL over the whole vocabulary of each sequence."""
    p, q = softmax(dense), softmax(other)
    return (p * (np.log(p) - np.log(q))).sum(-1).mean(-1)


def binned_kl(dense: Tensor, other: Tensor, k: int) -> np.ndarray:
    """The same over the dense model's top k tokens and a bin for the rest, token by token."""
    p, q = softmax(dense), softmax(other)
    out = np.zeros(p.shape[:2])
    for b, t in np.ndindex(*out.shape):
        top = np.argsort(-p[b, t])[:k]
        ps, qs = [*p[b, t, top], 1 - p[b, t, top].sum()], [*q[b, t, top], 1 - q[b, t, top].sum()]
        out[b, t] = sum(x * np.log(x / y) for x, y in zip(ps, qs, strict=True))
    return out.mean(-1)


def scored(
    k: int, dense: Tensor, other: Tensor, batch: Batch, context: MakeContext, samples: int = 0
) -> np.ndarray:
    evaluator = Divergence(top_k=k, tail_samples=samples)
    evaluator.bind(context(dense))
    column = evaluator.score(batch, other.clone())["kl"]
    assert column.dtype is torch.float64 and column.shape == (len(batch.ids),)
    return column.numpy()


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("k", [97, 500])
def test_k_of_the_whole_vocabulary_is_the_full_divergence(
    k: int, scale: float, batch: Batch, context: MakeContext, make_logits: MakeLogits
) -> None:
    dense = make_logits(1, scale)
    other = dense + make_logits(2, 0.3)
    assert np.abs(scored(k, dense, other, batch, context) - full_kl(dense, other)).max() < 1e-5 * max(
        1, scale
    )


@pytest.mark.parametrize("k", [1, 16, 96])
def test_fewer_tokens_and_a_tail_are_a_lower_bound_by_the_formula(
    k: int, batch: Batch, context: MakeContext, make_logits: MakeLogits
) -> None:
    dense = make_logits(1)
    other = dense + make_logits(2, 0.5)
    found, full = scored(k, dense, other, batch, context), full_kl(dense, other)
    assert np.abs(found - binned_kl(dense, other, k)).max() < 2e-5
    assert (found <= full + 1e-5).all()
    assert (found > 0.001).all()


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0, 30.0])
@pytest.mark.parametrize(("k", "samples"), [(1, 0), (1, 16), (16, 32), (96, 0), (97, 32)])
def test_divergence_of_the_dense_model_is_nothing(
    k: int, samples: int, scale: float, batch: Batch, context: MakeContext, make_logits: MakeLogits
) -> None:
    dense = make_logits(1, scale)
    assert np.abs(scored(k, dense, dense, batch, context, samples)).max() < 1e-5


@pytest.mark.parametrize("apart", [0.02, 0.5, 3.0])
def test_samples_of_the_tail_give_the_full_divergence_on_average(
    apart: float, batch: Batch, context: MakeContext, make_logits: MakeLogits
) -> None:
    dense = make_logits(1)
    other = dense + make_logits(2, apart)
    full = full_kl(dense, other).mean()
    bound = scored(8, dense, other, batch, context).mean()
    found = [
        scored(8, dense, other, replace(batch, windows=(s, s + 3)), context, 4).mean()
        for s in range(0, 300, 3)
    ]
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - full) < 4 * error < 0.1 * (full - bound), "unbiased, where the bin is not"
    one = scored(8, dense, other, batch, context, 4)
    assert np.array_equal(one, scored(8, dense, other, batch, context, 4)), "the same sample for everyone"


def test_samples_are_drawn_from_the_tail_by_their_probability(make_logits: MakeLogits) -> None:
    logp = make_logits(1).log_softmax(-1)[0]
    top = logp.topk(8, -1).indices
    drawn = torch.cat([_drawn(logp, top, 16, seed) for seed in range(200)], -1)
    assert not (drawn[..., None] == top[:, None]).any()
    tail = logp.double().exp().scatter(-1, top, 0.0)
    share = torch.stack([(drawn == token).double().mean(-1) for token in range(logp.shape[-1])], -1)
    assert (share - tail / tail.sum(-1, keepdim=True)).abs().max() < 0.01


@pytest.mark.parametrize("samples", [0, 4])
def test_items_with_many_classes_have_a_tail_too(
    samples: int, context: MakeContext, make_logits: MakeLogits
) -> None:
    dense = make_logits(1)[0]  # [items, classes]
    batch = Batch(Split.FITNESS, (0, len(dense)), torch.zeros(len(dense), 3, 2, 2))
    found = scored(16, dense, dense + 0.1 * make_logits(2)[0], batch, context, samples)
    assert (found > 0).all() and np.isfinite(found).all()


def test_logits_are_not_written_into(batch: Batch, context: MakeContext, make_logits: MakeLogits) -> None:
    evaluator, other = Divergence(16, 0), make_logits(2)
    evaluator.bind(context(make_logits(1)))
    before = other.clone()
    evaluator.score(batch, other)
    assert torch.equal(other, before)


def test_the_teacher_is_made_once_and_then_read(
    batch: Batch, tmp_path: Path, make_logits: MakeLogits
) -> None:
    calls: list[int] = []

    def dense(ids: Tensor) -> Tensor:
        calls.append(len(ids))
        return make_logits(1)

    for _ in range(2):  # the second is another run: only the disk remembers
        evaluator = Divergence(16, 0)
        evaluator.bind(Context(dense, Cache(tmp_path), "digest"))
        evaluator.score(batch, make_logits(2))
        evaluator.score(batch, make_logits(3))
    assert calls == [3]
    evaluator.score(replace(batch, windows=(3, 6)), make_logits(2))
    Divergence(17, 0).bind(Context(dense, Cache(tmp_path), "digest"))
    assert calls == [3, 3]


def test_teachers_in_memory_are_bounded_and_the_oldest_goes(
    batch: Batch, context: MakeContext, make_logits: MakeLogits, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 3 * 11 * 16 * (8 + 4 + 4)
    monkeypatch.setattr(divergence, "HELD_BYTES", 2 * one)
    evaluator, other = Divergence(16, 0), make_logits(2)
    evaluator.bind(context(make_logits(1)))
    wanted = evaluator.score(batch, other)["kl"]
    for start in (3, 6, 9):
        evaluator.score(replace(batch, windows=(start, start + 3)), other)
    assert [key[1] for key in evaluator._teachers] == [6, 9]
    assert torch.equal(evaluator.score(batch, other)["kl"], wanted)


def test_an_empty_top_is_refused() -> None:
    with pytest.raises(SettingError, match="top_k=0 must be at least 1"):
        Divergence(top_k=0)
    with pytest.raises(SettingError, match="tail_samples=-1 must be at least 0"):
        Divergence(tail_samples=-1)


@pytest.mark.real
@pytest.mark.parametrize("name", ["hf-stories260K", "wiki-llama"])
def test_a_trained_model_does_not_diverge_from_itself(real_data: Path, name: str, tmp_path: Path) -> None:
    """Confident predictions leave next to nothing for the tail: there rounding shows first."""
    loaded = load_model(str(real_data / name))
    text = (real_data / "tinystories" / "tinystories.txt").read_text()[:4000]
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:768]).reshape(3, 256)
    dense = dense_logits(LlamaAdapter(loaded.model))
    for k in (16, 512):
        evaluator = Divergence(top_k=k)
        evaluator.bind(Context(dense, Cache(tmp_path), "digest"))
        batch = Batch(Split.FITNESS, (0, 3), ids)
        assert evaluator.score(batch, dense(ids))["kl"].abs().max() < 1e-5
