"""Scores a model that is built already, as stored on disk, against the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autoprune.data import Corpus
from autoprune.errors import SettingError
from autoprune.evaluation import Batch, LogitEvaluator, Scores, continuation, summarise
from autoprune.forward import logits_of
from autoprune.objective import Fidelity


@dataclass(frozen=True)
class Scoring:
    """A corpus and evaluators that are bound to the dense model; `sequences` windows a micro-batch."""

    corpus: Corpus
    evaluators: Sequence[LogitEvaluator]
    sequences: int
    prompt_len: int | None = None  # tokens of a window that are a prompt: what follows is scored

    def __post_init__(self) -> None:
        if not any("kl" in evaluator.metrics for evaluator in self.evaluators):
            raise SettingError("recovery needs an evaluator of kl: keep divergence in evaluator=[…]")

    def score(self, model: Any, fidelity: Fidelity) -> Mapping[str, float]:
        """Means over the fidelity's windows; not finite where the model's logits are not."""
        return self.scores(model, fidelity).metrics

    @torch.inference_mode()
    def scores(self, model: Any, fidelity: Fidelity) -> Scores:
        """The same, with the values of every window."""
        start, stop = fidelity.windows
        windows = self.corpus.windows(fidelity.split)
        columns: dict[str, list[Any]] = {}
        for first in range(start, stop, self.sequences):
            last = min(first + self.sequences, stop)
            ids = torch.from_numpy(windows[first:last].astype(np.int64))
            batch = Batch(fidelity.split, (first, last), ids, continuation(ids, self.prompt_len))
            logits = logits_of(model, ids, self.prompt_len)
            for evaluator in self.evaluators:
                for metric, column in evaluator.score(batch, logits).items():
                    columns.setdefault(metric, []).append(column.double().numpy().copy())
        return summarise(columns)
