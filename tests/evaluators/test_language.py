"""Full KL, agreement, bits per byte and sliding perplexity against computations of another kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.data import Corpus, open_corpus
from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Batch, Context, Evaluation, Failure, Scores, summarise
from autoprune.forward import BuiltModel, Rows, log_likelihood
from autoprune.models.llama import LlamaAdapter
from autoprune.models.load import load_model
from autoprune.objective import Fidelity, Split
from autoprune.run.stream import dense_logits
from autoprune.space import Plan
from autoprune.supernet import Supernet
from autoprune.token_bytes import token_bytes
from evaluators.agreement import Agreement
from evaluators.bits_per_byte import BitsPerByte
from evaluators.divergence import Divergence
from evaluators.full_divergence import FullDivergence
from evaluators.perplexity import Perplexity
from evaluators.sliding import SlidingPerplexity, sliding_rows
from tests import tiny
from tests.prefixes import Prefixes

MakeLogits = Callable[..., Tensor]
MakeContext = Callable[[Tensor], Context]
PLAN = Plan.of([(2, 48)] * 3)


def test_full_divergence_by_another_formula(
    batch: Batch, context: MakeContext, make_logits: MakeLogits
) -> None:
    dense, other = make_logits(1), make_logits(1) + make_logits(2, 0.5)
    evaluator = FullDivergence()
    evaluator.bind(context(dense))
    found = evaluator.score(batch, other)["kl_full"]
    wanted = functional.kl_div(
        other.double().log_softmax(-1), dense.double().log_softmax(-1), reduction="none", log_target=True
    )
    assert torch.allclose(found, wanted.sum(-1).mean(-1), rtol=1e-9) and (found > 0.01).all()
    assert evaluator.score(batch, dense)["kl_full"].abs().max() < 1e-9


def test_the_dense_side_is_that_of_the_batch(batch: Batch, make_logits: MakeLogits, tmp_path: Path) -> None:
    """A held value must not serve the next batch."""
    calls: list[int] = []

    def dense(ids: Tensor) -> Tensor:
        calls.append(len(calls))
        return make_logits(len(calls))

    evaluator = FullDivergence()
    evaluator.bind(Context(dense, Cache(tmp_path), "digest"))
    following = Batch(batch.split, (3, 6), batch.ids)
    for at, seed in ((batch, 1), (batch, 1), (following, 2)):
        assert evaluator.score(at, make_logits(seed))["kl_full"].abs().max() < 1e-9
    assert calls == [0, 1]


def test_agreement_counts_equal_choices(batch: Batch, context: MakeContext, make_logits: MakeLogits) -> None:
    dense = make_logits(1)
    other = dense.clone()
    for t in range(4):
        other[1, t, (int(dense[1, t].argmax()) + 1) % 97] = 100.0
    evaluator = Agreement()
    evaluator.bind(context(dense))
    found = evaluator.score(batch, other)
    assert found["agreement"].tolist() == pytest.approx([1.0, 7 / 11, 1.0])
    assert found["disagreement"].tolist() == pytest.approx([0.0, 4 / 11, 0.0])
    other[2, 3, 5] = float("nan")
    assert evaluator.score(batch, other)["agreement"].isnan().tolist() == [False, False, True]


def test_bits_per_byte_of_a_model_that_knows_nothing(tmp_path: Path) -> None:
    """Uniform over 256 byte tokens: 8 bits each."""
    ids = tiny.token_ids((2, 9))
    evaluator = BitsPerByte()
    evaluator.bind(Context(lambda x: x, Cache(tmp_path), "digest", tiny.tokenizer()))
    columns = evaluator.score(Batch(Split.TEST, (0, 2), ids), torch.zeros(2, 9, 256))
    assert columns["bytes"].tolist() == [8.0, 8.0]
    scores = summarise({m: [c.numpy()] for m, c in columns.items()})
    assert scores.metrics["bits_per_byte"] == pytest.approx(8.0)


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    parts = {"bits": [np.array([8.0, 2.0])], "bytes": [np.array([1.0, 4.0])]}
    assert summarise(parts).metrics["bits_per_byte"] == pytest.approx(10 / 5)


@pytest.mark.parametrize(("size", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (20, 5), (40, 7)])
def test_every_token_is_scored_once(size: int, stride: int) -> None:
    text = list(range(37))
    rows, counts = sliding_rows(text, size, stride)
    scored = [t for row, count in zip(rows, counts, strict=True) for t in row[len(row) - count :]]
    firsts = set(range(0, 37, 8)) if size == stride else {0}
    assert scored == [t for t in text if t not in firsts]
    assert all(len(r) <= size for r in rows)
    assert all(len(r) - c >= size - stride for r, c in zip(rows[1:-1], counts[1:-1], strict=True))


def by_the_library(model: Any, ids: Tensor, size: int, stride: int) -> float:
    """The loop over overlapping windows with the model's own loss and labels of -100."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        inputs, new = ids[begin:end][None], end - before
        labels = inputs.clone()
        labels[:, :-new] = -100
        scored = int((labels[:, 1:] != -100).sum())
        if scored:
            with torch.inference_mode():
                total += float(model(input_ids=inputs, labels=labels).loss) * scored
            count, before = count + scored, end
        if end == len(ids):
            break
    return math.exp(total / count)


def corpus_of(ids: Tensor, folder: Path, window: int) -> Corpus:
    """A corpus whose test text is `ids`."""
    rows = ids.numpy().astype(np.int32).reshape(-1, window)
    np.save(folder / "test.npy", rows[np.random.default_rng(0).permutation(len(rows))])
    return Corpus(folder, "corpus")


@pytest.mark.parametrize(("size", "stride"), [(16, 16), (16, 8), (24, 5)])
def test_sliding_perplexity_is_the_librarys(tmp_path: Path, size: int, stride: int) -> None:
    model, ids = tiny.llama(noise=0.3), tiny.token_ids((96,))
    evaluator = SlidingPerplexity(context=size, stride=stride, tokens=None)
    corpus = corpus_of(ids, tmp_path, 12)
    evaluator.bind(Context(lambda x: x, Cache(tmp_path / "c"), "digest", corpus=corpus, sequences=3))
    found = evaluator.evaluate(BuiltModel(model), [PLAN])[0]
    assert isinstance(found, Scores)
    assert found.metrics["perplexity_sliding"] == pytest.approx(
        by_the_library(model, ids, size, stride), rel=1e-5
    )


def test_more_context_is_used(tmp_path: Path) -> None:
    """The stride must matter: other windows, other numbers."""
    model, corpus = tiny.llama(noise=0.3), corpus_of(tiny.token_ids((96,)), tmp_path, 12)
    found = []
    for stride in (16, 4):
        evaluator = SlidingPerplexity(context=16, stride=stride, tokens=None)
        evaluator.bind(Context(lambda x: x, Cache(tmp_path / "c"), "digest", corpus=corpus))
        found.append(evaluator.evaluate(BuiltModel(model), [PLAN])[0].metrics["nll_sliding"])  # type: ignore[union-attr]
    assert abs(found[0] - found[1]) > 1e-3


def test_a_text_shorter_than_a_window_and_settings_out_of_range(tmp_path: Path) -> None:
    corpus = corpus_of(tiny.token_ids((24,)), tmp_path, 12)
    with pytest.raises(DataError, match="context=64 is more than the 24 tokens of split test"):
        SlidingPerplexity(context=64).bind(Context(lambda x: x, Cache(tmp_path), "d", corpus=corpus))
    with pytest.raises(SettingError, match="stride=9 must be at most context=8"):
        SlidingPerplexity(context=8, stride=9)


def test_losses_that_are_not_finite_fail(tmp_path: Path) -> None:
    model = tiny.llama()
    model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    evaluator = SlidingPerplexity(context=12)
    evaluator.bind(
        Context(
            lambda x: x,
            Cache(tmp_path / "c"),
            "d",
            corpus=corpus_of(tiny.token_ids((24,)), tmp_path, 12),
        )
    )
    assert isinstance(evaluator.evaluate(BuiltModel(model), [PLAN])[0], Failure)


def test_padding_and_the_mask_change_no_score() -> None:
    model = BuiltModel(tiny.llama(noise=0.3))
    tokens = [tiny.token_ids((n,), seed=n).tolist() for n in (5, 9, 3)]
    together = Rows.of(tokens, [2, 4, 1])
    found: list[float] = []
    model.run(
        [PLAN], together.inputs, lambda i, logits: found.extend(log_likelihood(logits, together)[0].tolist())
    )
    for row, count, value in zip(tokens, (2, 4, 1), found, strict=True):
        logits = model.model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        assert value == pytest.approx(
            sum(float(logits[t - 1, row[t]]) for t in range(len(row) - count, len(row))), abs=1e-5
        )


# How far below the full KL that of the top k may be, as a share: flat distributions have more in the tail.
MODELS = [
    ("hf-stories260K", "tinystories"),
    ("hf-babyllama105", "tinystories"),
    ("wiki-llama", "wikitext2"),
]


@pytest.mark.real
@pytest.mark.parametrize(("name", "text"), MODELS)
def test_trained_models(real_data: Path, tmp_path: Path, name: str, text: str) -> None:
    """Perplexity is the stock model's own loss; top-k KL is nearly the full one; bytes are those of the text."""
    loaded = load_model(str(real_data / name))
    file = real_data / text / ("test.txt" if text == "wikitext2" else "tinystories.txt")
    piece = tmp_path / "text.txt"
    piece.write_text(file.read_text()[:150_000])
    corpus = open_corpus(str(piece), loaded.tokenizer, 256, Cache(tmp_path / "c"))
    adapter = LlamaAdapter(loaded.model)
    context = Context(dense_logits(adapter), Cache(tmp_path / "c"), "d", loaded.tokenizer, corpus)
    evaluators: list[Any] = [Perplexity(), BitsPerByte(), Divergence(), FullDivergence()]
    shape = adapter.shape
    net = Supernet(adapter, Prefixes(adapter))
    plans = [
        Plan.of([(shape.kv_groups, shape.ffn)] * shape.blocks),
        Plan.of([(shape.kv_groups, shape.ffn * 3 // 4)] * shape.blocks),
    ]
    dense, smaller = Evaluation(net, corpus, evaluators, context, 8).evaluate(
        plans, Fidelity(Split.TEST, (0, 16))
    )
    ids = torch.from_numpy(corpus.windows(Split.TEST)[:16].astype(np.int64))
    with torch.inference_mode():
        loss = float(loaded.model(input_ids=ids, labels=ids).loss)
    assert isinstance(dense, Scores) and isinstance(smaller, Scores)
    assert dense.metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert abs(dense.metrics["kl"]) < 1e-5 and abs(dense.metrics["kl_full"]) < 1e-5
    assert smaller.metrics["kl_full"] > 0.01
    assert smaller.metrics["kl"] == pytest.approx(smaller.metrics["kl_full"], rel=2e-3), "1 % is asked for"
    told = sum(len(loaded.tokenizer.decode(row[1:], skip_special_tokens=True).encode()) for row in ids)
    size = float(token_bytes(loaded.tokenizer, shape.vocabulary)[ids[:, 1:]].sum())
    assert size == pytest.approx(told, rel=2e-3)
    assert dense.metrics["bits_per_byte"] == pytest.approx(
        loss * ids[:, 1:].numel() / math.log(2) / size, rel=1e-5
    )
    sliding = SlidingPerplexity(context=256, stride=128, tokens=2048)
    sliding.bind(context)
    own = sliding.evaluate(net, plans[:1])[0]
    assert isinstance(own, Scores)
    wanted = by_the_library(
        loaded.model, torch.from_numpy(corpus.text(Split.TEST)[:2048].astype(np.int64)), 256, 128
    )
    assert own.metrics["perplexity_sliding"] == pytest.approx(wanted, rel=1e-4)
