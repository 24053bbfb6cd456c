"""Perplexity of running text in overlapping windows, of each of which only the new tokens are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Context, Failure, Scores, exp
from autoprune.forward import Rows, Runner, batches, first_bad, log_likelihood
from autoprune.objective import Split
from autoprune.space import Plan


class SlidingPerplexity:
    """`perplexity_sliding` and `nll_sliding` of the test text as it runs: windows of `context` tokens, `stride` apart.

    The first window predicts all its tokens but the first, each later one the tokens that no window before had, so
    that every token but the first is scored once, after at least `context - stride` others. With stride = context it
    is the plain protocol of disjoint windows, except that first tokens of later windows are left out there too.

    context: tokens in a window (null: the run's `window`); stride: new tokens in each window (null: half of it);
    tokens: how much of the text is read (null: all).
    """

    metrics = ("perplexity_sliding", "nll_sliding")
    needs: Literal["supernet"] = "supernet"
    split: Literal[Split.TEST] = Split.TEST

    def __init__(
        self, context: int | None = None, stride: int | None = None, tokens: int | None = 16384
    ) -> None:
        for name, value, least in (("context", context, 2), ("stride", stride, 1), ("tokens", tokens, 2)):
            if value is not None and value < least:
                raise SettingError(f"evaluator.sliding.{name}={value} must be at least {least}")
        if context is not None and stride is not None and stride > context:
            raise SettingError(f"evaluator.sliding.stride={stride} must be at most context={context}")
        self._size, self._stride, self._tokens = context, stride, tokens
        self._rows: list[Rows] = []

    def bind(self, context: Context) -> None:
        """Cut the text; DataError when it is shorter than one window."""
        assert context.corpus is not None, "a corpus is needed"
        size = self._size or context.window
        stride = self._stride or max(1, size // 2)
        text = context.corpus.text(Split.TEST)[: self._tokens]
        if len(text) < size:
            raise DataError(
                f"evaluator.sliding.context={size} is more than the {len(text)} tokens of split test; "
                "give more text or a smaller context"
            )
        rows, counts = sliding_rows(text.astype(np.int64).tolist(), size, stride)
        self._rows = [Rows.of(rows[at], counts[at]) for at in batches(len(rows), context.sequences)]

    def price(self) -> int:
        """Tokens put through a model for one plan."""
        return sum(rows.inputs.numel() for rows in self._rows)

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        """Mean over scored tokens; per window the mean of its own."""
        sums: list[list[Tensor]] = [[] for _ in plans]
        for rows in self._rows:

            def visit(index: int, logits: Tensor, rows: Rows = rows) -> None:
                sums[index].append(log_likelihood(logits, rows)[0])

            runner.run(plans, rows.inputs, visit)
        counts = torch.cat([rows.scored.sum(-1) for rows in self._rows]).double()
        return [
            self._scores(torch.cat(found), counts, runner, plan)
            for plan, found in zip(plans, sums, strict=True)
        ]

    def _scores(self, likelihoods: Tensor, counts: Tensor, runner: Runner, plan: Plan) -> Scores | Failure:
        finite = torch.isfinite(likelihoods)
        if not bool(finite.all()):
            at = int((~finite).nonzero()[0]) // len(self._rows[0].ids)
            return Failure(f"nll_sliding is not finite{first_bad(runner, plan, self._rows[at].inputs)}")
        nll = float(-likelihoods.sum() / counts.sum())
        metrics = {"nll_sliding": nll, "perplexity_sliding": exp(nll)}
        return Scores(metrics, {"nll_sliding": (-likelihoods / counts).numpy()})


def sliding_rows(text: Sequence[int], size: int, stride: int) -> tuple[list[Sequence[int]], list[int]]:
    """Windows, and how many tokens at the end of each are scored."""
    rows, counts, done = [], [], 1
    for start in range(0, len(text), stride):
        row = text[start : start + size]
        new = min(start + len(row) - done, len(row) - 1)
        if new > 0:
            rows.append(row)
            counts.append(new)
        done = start + len(row)
        if done == len(text):
            break
    return rows, counts
