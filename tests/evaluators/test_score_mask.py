"""What stands outside a batch's score mask does not count, whatever the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.evaluation import Batch, Context, continuation
from evaluators.agreement import Agreement
from evaluators.bits_per_byte import BitsPerByte
from evaluators.divergence import Divergence
from evaluators.full_divergence import FullDivergence
from evaluators.perplexity import Perplexity
from tests import tiny
from tests.evaluators.conftest import VOCABULARY, random_logits

PROMPT = 5
EVALUATORS: dict[str, Callable[[], Any]] = {
    "kl": Divergence,
    "kl_top": lambda: Divergence(top_k=16),
    "kl_full": FullDivergence,
    "nll": Perplexity,
    "agreement": Agreement,
    "bits": BitsPerByte,
}


@pytest.fixture
def bound(context: Callable[[Tensor], Context]) -> Callable[[str], Any]:
    """An evaluator that knows the dense logits."""

    def make(name: str) -> Any:
        evaluator = EVALUATORS[name]()
        evaluator.bind(replace(context(random_logits(1)), tokenizer=tiny.tokenizer()))
        return evaluator

    return make


@pytest.mark.parametrize("name", EVALUATORS)
def test_only_the_continuation_counts(name: str, bound: Any, batch: Batch) -> None:
    logits, masked = random_logits(2), replace(batch, score_mask=continuation(batch.ids, PROMPT))
    found = bound(name).score(masked, logits)
    other = logits.clone()
    other[:, :PROMPT] = random_logits(9)[:, :PROMPT]
    again, whole = bound(name).score(masked, other), bound(name).score(batch, logits)
    for metric, value in found.items():
        assert torch.equal(value, again[metric])
        assert value.dtype == torch.float64
        assert name == "agreement" or not torch.equal(value, whole[metric])
    other[:, -3] += random_logits(5)[:, -3]
    if name != "agreement":
        assert not torch.equal(
            bound(name).score(masked, other)[next(iter(found))], next(iter(found.values()))
        )


@pytest.mark.parametrize("name", EVALUATORS)
def test_a_mask_of_all_positions_changes_nothing(name: str, bound: Any, batch: Batch) -> None:
    logits, evaluator = random_logits(2), bound(name)
    everything = replace(batch, score_mask=torch.ones_like(batch.ids, dtype=torch.bool))
    plain, masked = evaluator.score(batch, logits), evaluator.score(everything, logits)
    for metric, value in plain.items():
        assert torch.allclose(value, masked[metric], rtol=1e-12)


def test_agreement_counts_where_it_is_asked(bound: Any, batch: Batch) -> None:
    dense = random_logits(1)
    half = torch.cat((dense[:, :8], random_logits(2)[:, 8:]), 1)
    masked = replace(batch, score_mask=continuation(batch.ids, PROMPT))
    assert bound("agreement").score(masked, half)["agreement"].tolist() == [0.5] * 3


def test_the_mean_is_over_the_scored_positions(bound: Any, batch: Batch) -> None:
    logits = random_logits(2)
    masked = replace(batch, score_mask=continuation(batch.ids, PROMPT))
    found = bound("nll").score(masked, logits)["nll"]
    logp = torch.log_softmax(logits.double(), -1)
    by_hand = [-sum(float(logp[b, t, batch.ids[b, t + 1]]) for t in range(PROMPT, 10)) / 5 for b in range(3)]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert logits.shape[-1] == VOCABULARY


def test_no_prompt_no_mask(batch: Batch) -> None:
    assert continuation(batch.ids, None) is None
    mask = continuation(batch.ids, 3)
    assert mask is not None and mask.shape == batch.ids.shape and mask.sum() == 3 * 8
