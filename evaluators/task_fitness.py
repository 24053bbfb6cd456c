"""Tasks as fitness: items that a search may see, in packs that stand for windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from autoprune.errors import SettingError
from autoprune.evaluation import Context
from autoprune.forward import Rows, batches, log_likelihood
from autoprune.objective import Split
from autoprune.space import Plan
from autoprune.supernet import Supernet

if TYPE_CHECKING:
    from evaluators.harness import Answer, Harness, Item

FIRST = ("acc", "exact_match")


@dataclass(frozen=True)
class Asked:
    """Of which tasks, how many items for *fitness* and as many for *selection*, none of the `limit` for *test*."""

    names: Sequence[str]
    include: str | None
    limit: int
    seed: int
    count: int
    rows: int


class TaskFitness:
    """`task_loss` and `task_error` of packs of items, by window; the same for every plan, and none of them in *test*.

    A pack is as many items as have about the tokens of a window, of all tasks in turn; after the last pack comes the
    first again. `task_error`: the share of items that are answered wrongly; `task_loss`: mean of -log of the right
    choice's share among all choices or, where there are none, of -log p of the right tokens, by token.
    """

    metrics = ("task_loss", "task_error")
    needs: Literal["supernet"] = "supernet"

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._harness: dict[Split, Harness] = {}
        self._packs: dict[Split, list[list[Item]]] = {}

    def bind(self, context: Context) -> None:
        """Load, render and tokenise; SettingError or DataError for what is unknown, absent or too little."""
        from evaluators.harness import Harness
        from evaluators.task_files import others

        asked = self._asked
        for at, split in enumerate((Split.FITNESS, Split.SELECTION)):
            drawn: dict[str, list[int]] = {}

            def choose(name: str, task: Any, at: int = at, drawn: dict[str, list[int]] = drawn) -> list[int]:
                drawn[name] = others(name, task, asked.limit, asked.seed, asked.count)[at]
                return drawn[name]

            harness = Harness(asked.names, asked.include, choose, context.tokenizer, context.longest)
            turns = [(name, drawn[name][i]) for i in range(asked.count) for name in drawn]
            self._packs[split] = list(
                _packed([harness.items[turn] for turn in turns], harness, context.window)
            )
            self._harness[split] = harness

    def packs(self, split: Split) -> int:
        """How many packs of items a split has."""
        return len(self._packs[split])

    def answer(
        self, supernet: Supernet, plans: Sequence[Plan], split: Split, windows: tuple[int, int]
    ) -> list[Mapping[str, Tensor]]:
        """Per plan and metric one value for each window, fp64 [windows]; nothing of *test*."""
        if split not in self._harness:
            return [{} for _ in plans]
        harness, packs = self._harness[split], self._packs[split]
        chosen = [packs[window % len(packs)] for window in range(*windows)]
        numbers = sorted({n for pack in chosen for item in pack for n in item.requests})
        answers = self._answers(supernet, plans, harness, numbers)
        return [self._scores(harness, chosen, found) for found in answers]

    def _answers(
        self, supernet: Supernet, plans: Sequence[Plan], harness: Harness, numbers: Sequence[int]
    ) -> list[dict[int, Answer]]:
        """Of every plan the answers by request."""
        order = sorted(numbers, key=lambda n: -len(harness.requests[n].tokens))
        found: list[dict[int, Answer]] = [{} for _ in plans]
        for at in batches(len(order), self._asked.rows):
            part = order[at]
            requests = [harness.requests[n] for n in part]
            rows = Rows.of([r.tokens for r in requests], [r.count for r in requests])

            def visit(index: int, logits: Tensor, rows: Rows = rows, part: Sequence[int] = part) -> None:
                values, greedy = log_likelihood(logits, rows)
                found[index] |= dict(
                    zip(part, zip(values.tolist(), greedy.tolist(), strict=True), strict=True)
                )

            supernet.run(plans, rows.inputs, visit)
        return found

    def _scores(
        self, harness: Harness, packs: Sequence[Sequence[Item]], answers: Mapping[int, Answer]
    ) -> Mapping[str, Tensor]:
        columns: dict[str, list[float]] = {metric: [] for metric in self.metrics}
        for pack in packs:
            scored = [_score(harness, item, [answers[n] for n in item.requests]) for item in pack]
            for metric, values in zip(self.metrics, zip(*scored, strict=True), strict=True):
                columns[metric].append(sum(values) / len(values))
        return {metric: torch.tensor(values, dtype=torch.float64) for metric, values in columns.items()}


def _packed(items: Sequence[Item], harness: Harness, tokens: int) -> list[list[Item]]:
    """Consecutive items, as many as have so many tokens together, the last ones of a pack more rather than fewer."""
    packs: list[list[Item]] = []
    room = 0
    for item in items:
        if room <= 0:
            packs.append([])
            room = tokens
        packs[-1].append(item)
        room -= sum(len(harness.requests[n].tokens) for n in item.requests)
    if len(packs) > 1 and room > tokens // 2:
        last = packs.pop()
        packs[-1] += last
    return packs


def _score(harness: Harness, item: Item, answers: Sequence[Answer]) -> tuple[float, float]:
    """Loss and error of one item."""
    row = harness.answered(item, answers)
    name = next((m for m in FIRST if m in row), None)
    if name is None:
        raise SettingError(f"evaluator.tasks.fitness: {item.task} has none of the metrics {', '.join(FIRST)}")
    values = torch.tensor([value for value, _ in answers], dtype=torch.float64)
    if item.right is None or item.right >= len(values):
        loss = -values[0] / harness.requests[item.requests[0]].count
    else:
        loss = -torch.log_softmax(values, 0)[item.right]
    return float(loss), 1.0 - float(row[name])
