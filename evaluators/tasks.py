"""lm-eval's tasks as metrics of finalists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from autoprune.errors import SettingError
from autoprune.evaluation import Context, Failure, Scores
from autoprune.forward import Rows, Runner, batches, first_bad, log_likelihood
from autoprune.objective import Split
from autoprune.space import Plan
from evaluators.task_fitness import FIRST, Asked, TaskFitness

if TYPE_CHECKING:
    from evaluators.harness import Harness

MEAN = "tasks_mean"


class Tasks:
    """`TASK_METRIC` and its `_stderr` for each task of lm-eval, and `tasks_mean`, the mean of their accuracies.

    Requests are rendered and tokenised once and scored by a supernet, a built model or a checkpoint alike; every plan
    answers the same items. Per window stand the values of each item.

    tasks: names of tasks that score log-likelihoods; include: a folder of task YAMLs, whose relative data_files lie
    in it; limit: items of each task, a fixed sample with all labels in their shares (null: all); seed: of that
    sample; rows: sequences in a micro-batch; fitness: further items of each task that a search may see (null: none),
    as `task_loss` and `task_error`, and as many for choosing among its finalists.
    """

    needs: Literal["supernet"] = "supernet"
    split: Literal[Split.TEST] = Split.TEST

    def __init__(
        self,
        tasks: Sequence[str] = [],  # noqa: B006 (as in the YAML)
        include: str | None = None,
        limit: int | None = 200,
        seed: int = 0,
        rows: int = 16,
        fitness: int | None = None,
    ) -> None:
        names = [tasks] if isinstance(tasks, str) else [str(t) for t in tasks]
        if not names or len(set(names)) < len(names):
            raise SettingError(
                f"evaluator.tasks.tasks={names}: name at least one task of lm-eval, and each once"
            )
        for name, value in (("limit", limit), ("rows", rows), ("fitness", fitness)):
            if value is not None and value < 1:
                raise SettingError(f"evaluator.tasks.{name}={value} must be at least 1")
        if seed < 0:
            raise SettingError(f"evaluator.tasks.seed={seed} must be at least 0")
        if fitness is not None and limit is None:
            raise SettingError(
                f"evaluator.tasks.fitness={fitness} needs a limit: without one all items are for test"
            )
        self.metrics: tuple[str, ...] = (MEAN, f"{MEAN}_stderr")
        self._names, self._include, self._limit, self._seed, self._size = names, include, limit, seed, rows
        self._fitness = fitness
        self._harness: Harness | None = None
        self._rows: list[Rows] = []
        self._order: list[int] = []

    def searched(self) -> TaskFitness | None:
        """What scores the items that a search may see."""
        if self._fitness is None or self._limit is None:
            return None
        given = self._names, self._include, self._limit, self._seed, self._fitness, self._size
        return TaskFitness(Asked(*given))

    def bind(self, context: Context) -> None:
        """Load, render and tokenise; SettingError or DataError for what is unknown, absent or out of range."""
        from evaluators.harness import Harness
        from evaluators.task_files import sample

        def choose(name: str, task: Any) -> list[int]:
            return sample(name, task, self._limit, self._seed)

        self._harness = Harness(self._names, self._include, choose, context.tokenizer, context.longest)
        requests = self._harness.requests
        # longest first: neighbours in a batch need little padding, and what does not fit in memory shows at once
        self._order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
        ordered = [requests[i] for i in self._order]
        self._rows = [
            Rows.of([r.tokens for r in ordered[at]], [r.count for r in ordered[at]])
            for at in batches(len(ordered), self._size)
        ]
        self.metrics = tuple(self._report([(0.0, False)] * len(requests)).metrics)

    @property
    def counts(self) -> dict[str, int]:
        """Items of each task."""
        return {} if self._harness is None else self._harness.counts

    @property
    def batches(self) -> tuple[Rows, ...]:
        """What is put through a model, padded, in its order."""
        return tuple(self._rows)

    def price(self) -> int:
        """Tokens put through a model for one plan, padding included."""
        return sum(rows.inputs.numel() for rows in self._rows)

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        """lm-eval's figures of each plan, from one pass over all requests for all of them."""
        found = self._run(runner, plans)
        return [self._scores(runner, plan, parts) for plan, parts in zip(plans, found, strict=True)]

    def _run(self, runner: Runner, plans: Sequence[Plan]) -> list[list[tuple[Tensor, Tensor]]]:
        """Of every plan, batch by batch: log-likelihoods, and whether they are the greedy ones."""
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in plans]
        for rows in self._rows:

            def visit(index: int, logits: Tensor, rows: Rows = rows) -> None:
                found[index].append(log_likelihood(logits, rows))

            runner.run(plans, rows.inputs, visit)
        return found

    def likelihoods(self, runner: Runner, plan: Plan) -> list[float]:
        """Of every request, in lm-eval's order."""
        (parts,) = self._run(runner, [plan])
        return [value for value, _ in self._answers(parts)]

    def _answers(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[float, bool]]:
        values, greedy = (torch.cat(list(p)).tolist() for p in zip(*parts, strict=True))
        answers: list[Any] = [None] * len(self._order)
        for place, value, same in zip(self._order, values, greedy, strict=True):
            answers[place] = (value, same)
        return answers

    def _scores(self, runner: Runner, plan: Plan, parts: Sequence[tuple[Tensor, Tensor]]) -> Scores | Failure:
        for rows, (values, _) in zip(self._rows, parts, strict=True):
            if not bool(torch.isfinite(values).all()):
                return Failure(f"log-likelihoods are not finite{first_bad(runner, plan, rows.inputs)}")
        return self._report(self._answers(parts))

    def _report(self, answers: Sequence[tuple[float, bool]]) -> Scores:
        assert self._harness is not None, "bind() comes first"
        report = self._harness.score(answers)
        metrics, main = dict(report.metrics), []
        for task in self._harness.counts:
            name = next((f"{task}_{m}" for m in FIRST if f"{task}_{m}" in metrics), None)
            main += [] if name is None else [name]
        if main:
            errors = [metrics.get(f"{m}_stderr", 0.0) for m in main]
            metrics[MEAN] = sum(metrics[m] for m in main) / len(main)
            metrics[f"{MEAN}_stderr"] = math.hypot(*errors) / len(main)
        return Scores(metrics, report.items)
