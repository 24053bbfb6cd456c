"""Tasks of lm-eval: finding them, reading their items, choosing the items that every plan is asked.

Imported only where tasks are asked for: lm-eval comes with the extra `autoprune[tasks]`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.errors import DataError, SettingError, nearest

try:
    import datasets
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise SettingError(
        f"evaluator=tasks needs lm-eval ({error}); install it: pip install 'autoprune[tasks]'"
    ) from error


def sample(name: str, task: Any, limit: int | None, seed: int) -> list[int]:
    """Indices of at most `limit` items, the same ones whenever asked; labels keep their shares.

    Raises DataError for a task without items and for labels that are no choice.
    """
    order = _ordered(name, task, seed)
    return sorted(order if limit is None else order[:limit])


def others(name: str, task: Any, limit: int, seed: int, count: int) -> tuple[list[int], list[int]]:
    """Indices of `count` items for *fitness* and of as many for *selection*, none of them in the sample of `limit`.

    Labels keep their shares in the beginnings of both, too. Items that say the same count once, in the sample first.
    """
    documents, order = list(task.eval_docs), _ordered(name, task, seed)
    said, found = {repr(documents[i]) for i in order[:limit]}, list[int]()
    for index in order[limit:]:
        if repr(documents[index]) not in said:
            said.add(repr(documents[index]))
            found.append(index)
    if len(found) < 2 * count:
        raise DataError(
            f"evaluator.tasks.fitness={count}: {name} has {len(found)} different items beside the {limit} of "
            f"evaluator.tasks.limit; {2 * count} are needed, half of them for selection"
        )
    return found[: 2 * count : 2], found[1 : 2 * count : 2]


def _ordered(name: str, task: Any, seed: int) -> list[int]:
    """All items, in a drawn order in which every beginning has all labels in their shares."""
    documents = list(task.eval_docs)
    if not documents:
        raise DataError(f"evaluator.tasks.tasks: {name} has no items")
    labels = [label_of(name, i, task, doc) for i, doc in enumerate(documents)]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    at = rng.permutation(len(documents))
    place: dict[str, int] = {}  # of the next item within its label
    totals = {label: labels.count(label) for label in set(labels)}
    ranks = []
    for index in at:
        label = labels[index]
        place[label] = place.get(label, 0) + 1
        ranks.append((place[label] - 0.5) / totals[label])
    return [int(at[i]) for i in np.argsort(np.array(ranks), kind="stable")]


def label_of(name: str, index: int, task: Any, doc: Any) -> str:
    """The index of an item's right choice, as text; empty where there is not one."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return ""
    target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
    found = target if isinstance(target, list) else [target]
    if getattr(task, "multiple_input", 0):
        return ""
    for one in found:
        if (isinstance(one, int) and not 0 <= one < len(choices)) or (
            isinstance(one, str) and one not in choices
        ):
            raise DataError(
                f"evaluator.tasks.tasks: item {index} of {name} has the label {one!r}; it has {len(choices)} choices"
            )
    return str(found[0] if isinstance(found[0], int) else choices.index(found[0]))


def load_tasks(names: Sequence[str], include: str | None) -> Any:
    """lm-eval's task dict; tasks of `include` first, and its own where that does not have them all."""
    folder = None if include is None else Path(include).expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise SettingError(f"evaluator.tasks.include={include} is not a folder")
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            raise SettingError(
                f"evaluator.tasks.tasks: {name!r} is unknown" + nearest(name, manager.all_tasks)
            )
    with contextlib.chdir(folder or Path.cwd()):  # relative data_files lie beside the task's YAML
        found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in names:
            try:
                for part, loaded in manager.load([name]).items():
                    found[part] |= loaded
            except StopIteration as error:  # how datasets meets an empty file
                raise DataError(f"evaluator.tasks.tasks: {name} has no items") from error
            except IndexError as error:
                raise DataError(f"evaluator.tasks.tasks: {name} has a label beyond its choices") from error
            except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
                raise DataError(_unreadable(name, manager, error)) from error
    return found


def _unreadable(name: str, manager: Any, error: Exception) -> str:
    said, path = " ".join(str(error).split())[:200], _dataset(manager, name)
    if path in ("json", "csv", "text", "parquet"):
        return f"evaluator.tasks.tasks: the items of {name} cannot be read: {said}"
    return (
        f"evaluator.tasks.tasks: {name} takes its items from {path or 'a network'}, which cannot be reached: {said}; "
        "write a YAML with dataset_path: json and dataset_kwargs: {data_files: {test: FILE.jsonl}} and name its "
        "folder in evaluator.tasks.include"
    )


def _dataset(manager: Any, name: str) -> str:
    with contextlib.suppress(Exception):
        from lm_eval.tasks._yaml_loader import load_yaml

        return str(load_yaml(manager.task_index[name].yaml_path, resolve_func=False).get("dataset_path", ""))
    return ""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """lm-eval and datasets print bars and advice; a run has its own progress."""
    before = {n: logging.getLogger(n).level for n in ("lm_eval", "lm-eval", "datasets")}
    bars = datasets.utils.logging.is_progress_bar_enabled()
    try:
        for name in before:
            logging.getLogger(name).setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            datasets.enable_progress_bars()
