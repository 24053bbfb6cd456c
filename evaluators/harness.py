"""lm-eval's side of task evaluation: tasks loaded, rendered and tokenised once, then scored as often as wanted.

Imported only where tasks are asked for: lm-eval comes with the extra `autoprune[tasks]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoprune.errors import DataError, SettingError

from evaluators.task_files import label_of, load_tasks, quietly  # isort: skip  # says what to install
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate

Choose = Callable[[str, Any], list[int]]  # a task's name and the task: indices of its items
Answer = tuple[float, bool]  # log-likelihood of a continuation, and whether it is the greedy one
SCORED = ("loglikelihood", "multiple_choice")
UNANSWERED = "evaluator.tasks.tasks: only log-likelihoods of continuations are answered"


@dataclass(frozen=True)
class Request:
    """Token ids, of which the last `count` are scored."""

    tokens: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Item:
    """One question: its task, its index there, its requests, and which of them is right (None: no single one)."""

    task: str
    index: int
    requests: tuple[int, ...]
    right: int | None


@dataclass(frozen=True)
class Report:
    """What lm-eval makes of the answers: metrics, and values an item, both by `TASK_METRIC`."""

    metrics: Mapping[str, float]
    items: Mapping[str, np.ndarray]


class Harness:
    """Tasks with a fixed sample of their items; `requests` are to be answered in their order."""

    def __init__(
        self,
        names: Sequence[str],
        include: str | None,
        choose: Choose,
        tokenizer: Any,
        longest: int,
    ) -> None:
        with quietly():
            self._loaded = load_tasks(names, include)
            self._tasks: dict[str, Any] = self._loaded["tasks"]
            for name, task in self._tasks.items():
                if task.OUTPUT_TYPE not in SCORED:
                    raise SettingError(
                        f"evaluator.tasks.tasks: {name} is of type {task.OUTPUT_TYPE}; allowed: {', '.join(SCORED)}"
                    )
            self._samples = {name: choose(name, task) for name, task in self._tasks.items()}
            self._items: dict[str, list[Mapping[str, Any]]] = {}
            reader = _Reader(tokenizer, longest)
            self._evaluate(reader)
            self.requests = tuple(reader.requests)
            self._documents = {name: list(task.eval_docs) for name, task in self._tasks.items()}
            self.items = self._found()
            self._process = {name: task.process_results for name, task in self._tasks.items()}
            for name, task in self._tasks.items():
                self._freeze(name, task)

    @property
    def counts(self) -> dict[str, int]:
        """Items of each task."""
        return {name: len(indices) for name, indices in self._samples.items()}

    def _found(self) -> dict[tuple[str, int], Item]:
        """The items by task and index, from the requests in their order."""
        owned: dict[tuple[str, int], list[int]] = {}
        sorted_ = {
            name: sorted(indices) for name, indices in self._samples.items()
        }  # as lm-eval numbers them
        owners = [(n, sorted_[n][i.doc_id]) for n, task in self._tasks.items() for i in task.instances]
        assert len(owners) == len(self.requests), "requests are asked task by task"
        for number, owner in enumerate(owners):
            owned.setdefault(owner, []).append(number)
        found = {}
        for (name, index), numbers in owned.items():
            label = label_of(name, index, self._tasks[name], self._documents[name][index])
            found[name, index] = Item(name, index, tuple(numbers), int(label) if label else None)
        return found

    def answered(self, item: Item, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """lm-eval's own metrics of one item, from the answers to its requests."""
        row: Mapping[str, Any] = self._process[item.task](
            self._documents[item.task][item.index], list(answers)
        )
        return row

    def score(self, answers: Sequence[Answer]) -> Report:
        """lm-eval's own metrics and standard errors for the answers to all requests."""
        self._items = {name: [] for name in self._tasks}
        with quietly():
            results = self._evaluate(_Teller(answers))
        metrics = {
            f"{task}_{_name(m)}": float(v)
            for task, row in results.items()
            for m, v in row.items()
            if _is_number(m, v)
        }
        items = {}
        for task, rows in self._items.items():
            for metric in rows[0] if rows else ():
                if all(isinstance(row[metric], (int, float, np.number)) for row in rows):
                    items[f"{task}_{metric}"] = np.array([float(row[metric]) for row in rows])
        for name, values in items.items():
            if (
                len(values) > 1 and abs(values.mean() - metrics.get(name, math.inf)) < 1e-9
            ):  # a mean over items
                metrics[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values)))
        return Report(metrics, items)

    def _evaluate(self, lm: Any) -> Mapping[str, Mapping[str, Any]]:
        found = evaluate(lm, self._loaded, samples=self._samples, bootstrap_iters=0, log_samples=False)
        assert found is not None
        return {**found["results"], **found.get("groups", {})}

    def _freeze(self, name: str, task: Any) -> None:
        """Keep what rendering gave: building requests again would cost more than answering them."""
        instances, documents = (
            list(task.instances),
            [d for _, d in task.doc_iterator(samples=self._samples[name])],
        )

        def again(**settings: Any) -> None:
            for instance in instances:
                instance.resps, instance.filtered_resps = [], {}

        task.build_all_requests = again
        task.doc_iterator = lambda **settings: enumerate(documents)
        for method in ("doc_to_choice", "doc_to_target", "doc_to_text"):
            setattr(task, method, _remembered(getattr(task, method)))
        process = task.process_results

        def recorded(doc: Any, results: Any) -> Mapping[str, Any]:
            row: Mapping[str, Any] = process(doc, results)
            self._items[name].append(row)
            return row

        task.process_results = recorded


class _Reader(TemplateLM):  # type: ignore[misc]
    """Writes down the requests as tokens, encoded as lm-eval's own Hugging Face model does."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._longest = longest
        self.requests: list[Request] = []

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        ids = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise DataError(
                "a task has items without a prompt, and the tokenizer has neither bos nor eos token"
            )
        return int(found)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        bos = self.tokenizer.bos_token
        if add_special_tokens is None and bos and string.startswith(bos):
            add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **flags))

    def _loglikelihood_tokens(self, requests: Any, **settings: Any) -> list[Answer]:
        for _, context, continuation in requests:
            tokens = (*context, *continuation)[-(self._longest + 1) :]  # the last is only asked for
            self.requests.append(Request(tokens, min(len(continuation), len(tokens) - 1)))
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise SettingError(UNANSWERED)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise SettingError(UNANSWERED)


class _Teller(_Reader):
    """Gives answers that are known."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__(None, 0)
        self._answers = list(answers)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[Answer]:
        assert len(requests) == len(self._answers)
        return self._answers


def _remembered(method: Callable[..., Any]) -> Callable[..., Any]:
    """By document, which the harness keeps alive."""
    known: dict[int, Any] = {}

    def found(doc: Any, *further: Any) -> Any:
        if further:
            return method(doc, *further)
        if id(doc) not in known:
            known[id(doc)] = method(doc)
        return known[id(doc)]

    return found


def _name(metric: str) -> str:
    """`acc,none` as `acc`."""
    name, _, chosen = metric.partition(",")
    return name if chosen in ("", "none") else f"{name}_{chosen}"


def _is_number(metric: str, value: Any) -> bool:
    return "," in metric and isinstance(value, (int, float)) and not isinstance(value, bool)
