"""tasks.md of a run: what each row of the leaderboard loses on tasks, item by item against the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autoprune.report.files import write_text
from autoprune.report.paired import Difference, Items, by_task, pooled
from autoprune.run.finals import Entry

FILE = "tasks.md"


def differences(items: Mapping[str, Mapping[str, Items]], dense: str) -> dict[str, dict[str, Difference]]:
    """By finalist and task; `items` are an evaluator's, a finalist's, a metric's."""
    found: dict[str, dict[str, Difference]] = {}
    for plans in items.values():
        for key, values in plans.items() if dense in plans else ():
            found.setdefault(key, {}).update(by_task(values, plans[dense]))
    return {key: tasks for key, tasks in found.items() if tasks}


def changes(found: Mapping[str, Mapping[str, Difference]]) -> dict[str, dict[str, float]]:
    """Columns of the leaderboard by finalist."""
    whole = {key: pooled(tasks) for key, tasks in found.items()}
    return {
        key: {"tasks_change": d.mean, "tasks_change_low": d.low, "tasks_change_high": d.high}
        for key, d in whole.items()
        if d is not None
    }


def write_tasks(
    entries: Sequence[Entry], found: Mapping[str, Mapping[str, Difference]], folder: Path
) -> str | None:
    """Write the table; a sentence for the report, None when no task was asked."""
    rows = [e for e in entries if e.name != "dense" and e.finalist.name in found]
    if not rows:
        return None
    lines = [
        "# Tasks",
        "",
        NOTE,
        "",
        "| row | key | task | accuracy | against dense |",
        "|---|---|---|---:|---|",
    ]
    for entry in rows:
        for task, difference in found[entry.finalist.name].items():
            accuracy = entry.own.get(f"{task}_acc")
            shown = (
                "–"
                if accuracy is None
                else f"{accuracy:.3f} ± {entry.own.get(f'{task}_acc_stderr', 0.0):.3f}"
            )
            lines.append(f"| {entry.name} | `{entry.plan.key}` | {task} | {shown} | {difference.verdict} |")
    write_text(folder / FILE, "\n".join([*lines, ""]))
    front = [pooled(found[e.finalist.name]) for e in rows if e.name == "front"]
    sound = sum(d is not None and d.high >= 0 for d in front)
    return f"On tasks {sound} of {len(front)} points of the front show no measurable loss; see {FILE}."


NOTE = (
    "Accuracy ± standard error; every row answers the same items as the dense model, and the difference is taken item "
    "by item, with a 95 % interval. `no measurable loss`: the interval holds zero."
)
