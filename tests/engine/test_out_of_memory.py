"""Evaluations that do not fit: smaller micro-batches, told in the result, and at last a failure."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune.evaluation import Failure, Scores
from autoprune.objective import Fidelity, Split
from autoprune.out_of_memory import evaluate_within, out_of_memory
from autoprune.space import Plan

FIDELITY = Fidelity(Split.FITNESS, (0, 8))


class Small:
    """Fits plans of some width in micro-batches of so many windows."""

    sequences = 8

    def __init__(self, fits: dict[int, int]) -> None:
        self._fits, self.tried = fits, list[tuple[list[int], int]]()

    def evaluate(self, plans: Sequence[Plan], fidelity: Fidelity, sequences: int) -> list[Scores]:
        widths = [plan.widths()[0][1] for plan in plans]
        self.tried.append((widths, sequences))
        if any(self._fits.get(width, 8) < sequences for width in widths):
            raise MemoryError
        return [Scores({"kl": float(width)}, {}) for width in widths]


def test_only_what_does_not_fit_gets_smaller_micro_batches_and_says_so() -> None:
    small: Any = Small({16: 2, 24: 0})
    found = evaluate_within(small, [Plan.of([(1, w)]) for w in (8, 16, 24)], FIDELITY)
    first, second, third = found
    assert isinstance(first, Scores) and not first.note
    assert isinstance(second, Scores) and second.note == "micro-batches of 2 windows: no memory for 8"
    assert isinstance(third, Failure) and "out of memory, even with one window" in third.reason
    assert small.tried[:2] == [([8, 16, 24], 8), ([8], 8)]


def test_torch_s_own_words_are_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value) and out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("size mismatch")) and not out_of_memory(ValueError("out of memory"))


def test_a_note_is_part_of_the_result() -> None:
    from autoprune.executors.base import result

    job: Any = SimpleNamespace(proposal=None)
    assert result(job, Scores({}, {}, "smaller")).reason == "smaller"
    assert result(job, Scores({}, {}, "smaller")).ok
