"""Evaluates batches of plans on windows: one supernet pass serves every evaluator that reads logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.cache import Cache
from autoprune.classified import COLUMNS, classified
from autoprune.data import Corpus, Windows, as_tensor
from autoprune.errors import AutopruneError, DataError, SettingError, SpaceError
from autoprune.forward import Runner
from autoprune.objective import Fidelity, Split
from autoprune.out_of_memory import out_of_memory
from autoprune.precision import FULL, products_in
from autoprune.shape import Shape
from autoprune.space import Plan
from autoprune.supernet import Supernet

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Metrics of one plan: means, and the values of every window where there are such.

    `note`: what a reader of the ledger must know, such as a smaller micro-batch.
    """

    metrics: Mapping[str, float]
    per_window: Mapping[str, Array]
    note: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a plan has no metrics."""

    reason: str


@dataclass(frozen=True)
class Batch:
    """Consecutive windows of one split as the model sees them."""

    split: Split
    windows: tuple[int, int]
    ids: Tensor  # token ids [B, T], negative at padding, or pixel values [B, C, H, W]
    score_mask: Tensor | None = None  # bool [B, T] positions whose logits are scored; None: all of them
    labels: Tensor | None = None  # [B], of items to classify

    def on(self, device: torch.device) -> Batch:
        """The same on a device."""
        if self.ids.device == device:
            return self
        rest = (None if t is None else t.to(device) for t in (self.score_mask, self.labels))
        return Batch(self.split, self.windows, self.ids.to(device), *rest)


@dataclass(frozen=True)
class Context:
    """What an evaluator may use to prepare itself."""

    dense_logits: Callable[[Tensor], Tensor]  # [B, T] -> [B, T, V]
    cache: Cache
    digest: str  # of model and corpus
    tokenizer: Any = None
    corpus: Corpus | None = None
    shape: Shape | None = None
    sequences: int = 8  # rows in a micro-batch
    window: int = 256
    longest: int = 1 << 20  # tokens that the model can read
    prompt_len: int | None = None  # tokens of a window that are a prompt and not scored; None: none


class LogitEvaluator(Protocol):
    """An evaluator that reads the logits of a supernet pass."""

    metrics: tuple[str, ...]
    needs: Literal["supernet"]

    def bind(self, context: Context) -> None:
        """Prepare for a model and corpus; called once."""

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Per metric one value for each sequence, fp64 [B]; logits [B, T, V]."""


@runtime_checkable
class StreamEvaluator(Protocol):
    """An evaluator that needs more of a pass than its logits: a proxy, which reads sublayers or gradients."""

    metrics: tuple[str, ...]
    needs: Literal["supernet"]

    def bind(self, context: Context) -> None:
        """Prepare for a model and corpus; called once."""

    def measure(self, supernet: Supernet, plans: Sequence[Plan], ids: Tensor) -> list[Mapping[str, Tensor]]:
        """Per plan and metric one value for each sequence, fp64 [B]; ids [B, T]."""


@runtime_checkable
class ItemEvaluator(Protocol):
    """An evaluator whose windows are items of its own: of *fitness* and *selection*, never of *test*."""

    metrics: tuple[str, ...]
    needs: Literal["supernet"]

    def bind(self, context: Context) -> None:
        """Prepare for a model and corpus; called once."""

    def answer(
        self, supernet: Supernet, plans: Sequence[Plan], split: Split, windows: tuple[int, int]
    ) -> list[Mapping[str, Tensor]]:
        """Per plan and metric one value for each window, fp64 [windows]; nothing of splits that it has no items of."""


WindowEvaluator = LogitEvaluator | StreamEvaluator | ItemEvaluator


@runtime_checkable
class Searchable(Protocol):
    """A final evaluator that has further items, for searches."""

    def searched(self) -> ItemEvaluator | None:
        """What scores them; None when there are none."""


@runtime_checkable
class FinalEvaluator(Protocol):
    """An evaluator of finalists on items of its own: dearer than windows, and always *test*, so no search sees it."""

    metrics: tuple[str, ...]
    needs: Literal["plan", "supernet", "model"]
    split: Literal[Split.TEST]

    def bind(self, context: Context) -> None:
        """Prepare for a model and corpus; called once."""

    def price(self) -> int:
        """Tokens put through a model for one plan."""

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        """Scores of each plan; `per_window` holds one value an item. One that needs a model is given one plan."""


class Evaluation:
    """A supernet, a corpus and the evaluators of windows: those that read logits share one pass."""

    def __init__(
        self,
        supernet: Supernet,
        corpus: Corpus,
        evaluators: Sequence[WindowEvaluator],
        context: Context,
        sequences: int,
        only: Split | None = None,
        precision: str = FULL,
    ) -> None:
        """`only`: the split it serves; None: any. A search gets one for *fitness* alone, in its `precision`."""
        self.only, self.precision = only, precision
        self.supernet = supernet
        self.corpus = corpus
        self.evaluators: tuple[LogitEvaluator, ...] = tuple(
            e for e in evaluators if not isinstance(e, StreamEvaluator | ItemEvaluator)
        )
        self.items = tuple(e for e in evaluators if isinstance(e, ItemEvaluator))
        self.proxies = tuple(e for e in evaluators if isinstance(e, StreamEvaluator))
        self.sequences = sequences
        self._prompt_len = context.prompt_len
        for evaluator in evaluators:
            evaluator.bind(context)

    def evaluate(
        self, plans: Sequence[Plan], fidelity: Fidelity, sequences: int | None = None
    ) -> list[Scores | Failure]:
        """Scores of each plan on the fidelity's windows, or the reason why there are none.

        Micro-batches hold `sequences` windows (None: those of the evaluation), counted from the fidelity's first:
        neither the number of plans nor free memory changes the grouping. A plan that raises has its error as the reason
        and does not disturb the others; what no plan can help (a full disk, missing windows, a split that it does not
        serve) is raised, and so is a MemoryError: see `out_of_memory.evaluate_within`.
        """
        if self.only is not None and fidelity.split is not self.only:
            raise SettingError(
                f"windows of split {fidelity.split.value} were asked of a search's evaluation; "
                f"it serves split {self.only.value} only"
            )
        size = self.sequences if sequences is None else sequences
        try:
            with products_in(self.precision):
                return self._evaluate(plans, fidelity, size)
        except SpaceError as error:
            caught: Exception = error
        except (AutopruneError, OSError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise MemoryError(_line(error)) from error
            caught = error
        if len(plans) == 1:
            return [Failure(f"plan {plans[0].key}: {_line(caught)}")]
        middle = len(plans) // 2
        return self.evaluate(plans[:middle], fidelity, size) + self.evaluate(plans[middle:], fidelity, size)

    def _evaluate(self, plans: Sequence[Plan], fidelity: Fidelity, size: int) -> list[Scores | Failure]:
        values: list[dict[str, list[Array]]] = [{} for _ in plans]
        failures: dict[int, Failure] = {}
        for group in self._groups(len(plans), fidelity, size):
            alive = [i for i in range(len(plans)) if i not in failures]
            if self.evaluators:
                self._pass(plans, alive, group, values, failures)
            for batch, proxy in ((b, p) for b in group for p in self.proxies):
                alive = [i for i in alive if i not in failures]
                found = proxy.measure(self.supernet, [plans[i] for i in alive], batch.ids)
                for index, columns in zip(alive, found, strict=True):
                    self._add(index, plans[index], batch, columns, values, failures)
            for batch, asked in ((b, a) for b in group for a in self.items):
                alive = [i for i in alive if i not in failures]
                found = asked.answer(self.supernet, [plans[i] for i in alive], batch.split, batch.windows)
                for index, columns in zip(alive, found, strict=True):
                    self._add(index, plans[index], batch, columns, values, failures)
        return [failures[i] if i in failures else summarise(values[i]) for i in range(len(plans))]

    def _groups(self, plans: int, fidelity: Fidelity, size: int) -> Iterator[list[Batch]]:
        """Micro-batches of `size` windows, as many at a time as the supernet takes together."""
        group: list[Batch] = []
        together = 1
        for batch in self._batches(fidelity, size):
            if not group:
                together = self.supernet.together(plans, batch.ids)
            group.append(batch)
            if len(group) >= together:
                yield group
                group = []
        if group:
            yield group

    def _batches(self, fidelity: Fidelity, size: int) -> Iterator[Batch]:
        rows, labels = self._windows(fidelity), self.corpus.labels(fidelity.split)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            first = fidelity.windows[0] + start
            span, ids = (first, first + len(chunk)), as_tensor(chunk)
            known = None if labels is None else torch.from_numpy(labels[span[0] : span[1]])
            yield Batch(fidelity.split, span, ids, continuation(ids, self._prompt_len), known)

    def _pass(
        self,
        plans: Sequence[Plan],
        alive: Sequence[int],
        group: Sequence[Batch],
        values: list[dict[str, list[Array]]],
        failures: dict[int, Failure],
    ) -> None:
        here: dict[int, Batch] = {}  # where the logits are

        def visit(number: int, position: int, logits: Tensor) -> None:
            index = alive[position]
            batch = here[number] = here.get(number, group[number]).on(logits.device)
            for evaluator in self.evaluators:
                if index in failures:  # on an earlier micro-batch, or by another evaluator
                    return
                self._add(index, plans[index], batch, evaluator.score(batch, logits), values, failures)

        self.supernet.run_many([plans[i] for i in alive], [batch.ids for batch in group], visit)

    def _add(
        self,
        index: int,
        plan: Plan,
        batch: Batch,
        columns: Mapping[str, Tensor],
        values: list[dict[str, list[Array]]],
        failures: dict[int, Failure],
    ) -> None:
        for metric, column in columns.items():
            if not bool(torch.isfinite(column).all()):
                failures[index] = self._failure(plan, batch, metric)
                return
            values[index].setdefault(metric, []).append(column.double().cpu().numpy().copy())

    def _failure(self, plan: Plan, batch: Batch, metric: str) -> Failure:
        where = self.supernet.first_bad_sublayer(plan, batch.ids)
        start, stop = batch.windows
        return Failure(f"plan {plan.key}: {metric} is not finite on windows {start}..{stop}, from {where} on")

    def _windows(self, fidelity: Fidelity) -> Windows:
        windows = self.corpus.windows(fidelity.split)
        start, stop = fidelity.windows
        if stop > len(windows):
            raise DataError(
                f"split {fidelity.split.value} has {len(windows)} windows, {stop} were asked for; "
                "give more text or ask for fewer windows"
            )
        return windows[start:stop]


def continuation(ids: Tensor, prompt_len: int | None) -> Tensor | None:
    """The score mask [B, T] of sequences of which the first `prompt_len` tokens are a prompt; None without one."""
    if prompt_len is None:
        return None
    return (torch.arange(ids.shape[1], device=ids.device) >= prompt_len).expand(ids.shape)


def mean_scored(values: Tensor, batch: Batch) -> Tensor:
    """Mean of every row over its scored positions, fp64 [B].

    values [B, T], or [B, T - 1] of predicted tokens, or [B] of items.
    """
    if batch.score_mask is None:
        return values.double().reshape(len(values), -1).mean(-1)
    mask = batch.score_mask[:, : values.shape[1]]
    return torch.where(mask, values.double(), 0.0).sum(-1) / mask.sum(-1)


def summarise(columns: Mapping[str, list[Array]]) -> Scores:
    """Values of every window and their means, from those of the micro-batches in order."""
    per_window = {metric: np.concatenate(parts) for metric, parts in columns.items()}
    return scores_of(per_window, {m: v.tolist() for m, v in per_window.items() if m not in COLUMNS})


def scores_of(per_window: Mapping[str, Array], plain: Mapping[str, list[float]]) -> Scores:
    """Values of every window and their means; `plain` are the values of metrics that have a mean, as lists."""
    means = {metric: math.fsum(values) / len(values) for metric, values in plain.items()}
    if all(name in per_window for name in COLUMNS):
        means |= classified(per_window)
    if "nll" in means:
        means["perplexity"] = exp(means["nll"])
    if "bits" in means:
        means["bits_per_byte"] = means["bits"] / means["bytes"]  # of sums: windows differ in bytes
    return Scores(means, per_window)


def exp(nll: float) -> float:
    """A perplexity, finite for any finite loss."""
    return float(np.exp(min(nll, 700.0)))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
