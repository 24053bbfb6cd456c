"""What a run shows while it works: a line per stage, and a bar with the best point and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.objective import Objective, Result

Step = Callable[[int, int], None]


class Progress:
    """Stages and one search bar on stderr; silent when `quiet` or when stderr is no terminal for bars."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console: Console = Console(stderr=True, quiet=quiet)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._bars.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Step]:
        """A bar for a piece of work; call the step with (done, total)."""
        task = self._bars.add_task(name, total=None, note="")

        def step(done: int, total: int) -> None:
            self._bars.update(task, completed=done, total=total)

        try:
            yield step
        finally:
            self._bars.remove_task(task)

    @contextmanager
    def search(
        self, tokens: int, objectives: Sequence[Objective], dense: dict[str, float]
    ) -> Iterator[SearchBar]:
        """The search's bar."""
        with self.noted("searching", tokens) as show:
            yield SearchBar(show, objectives, dense)

    @contextmanager
    def noted(self, name: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar with a note; call it with (done, note)."""
        task = self._bars.add_task(name, total=total, note="")

        def show(done: int, note: str) -> None:
            self._bars.update(task, completed=min(done, total), note=note)

        try:
            yield show
        finally:
            self._bars.remove_task(task)


class SearchBar:
    """A study's watcher: the best first objective among plans of at most 0.6x of the second one's dense value."""

    def __init__(
        self, show: Callable[[int, str], None], objectives: Sequence[Objective], dense: dict[str, float]
    ) -> None:
        self._show = show
        self._objectives = objectives
        self._dense = dense
        self._best = float("inf")

    def update(self, tokens: int, evaluations: int, results: Sequence[Result]) -> None:
        """Totals so far and the batch's results."""
        first = self._objectives[0]
        second = self._objectives[1].metric if len(self._objectives) > 1 else ""
        limit = 0.6 * self._dense[second] if second in self._dense else float("inf")
        for result in results:
            if result.ok and result.metrics.get(second, 0.0) <= limit:
                self._best = min(self._best, first.value(result.metrics))
        best = "" if self._best == float("inf") else f", best {first.metric} {self._best:.3f}"
        where = f" at <= 0.6x {second}" if best and second in self._dense else ""
        self._show(tokens, f"{evaluations} plans{best}{where}")
