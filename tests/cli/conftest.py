"""A stand-in for `autoprune.api` that records its calls, and a way to run a command line in this process."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NAMES = (
    *("run_config", "demo", "resume", "report", "export", "recover", "profile", "zoo_train", "bench"),
    "study_oracle",
)


@dataclass
class Calls:
    """What the command line asked of the API; `answer` is run instead of doing it."""

    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    answer: Callable[..., Any] = lambda *args, **kwargs: "answer"

    def stand_in(self, name: str, real: Callable[..., Any] | None) -> Callable[..., Any]:
        """A function that records; a call that does not fit the real one's signature fails."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if real is not None:
                inspect.signature(real).bind(*args, **kwargs)
            self.made.append((name, args, kwargs))
            return self.answer(*args, **kwargs)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Every function of the API replaced by one that records."""
    recorded, module = Calls(), ModuleType("autoprune.api")
    exists = find_spec("autoprune.api") is not None
    if exists:
        import autoprune.api as module  # type: ignore[no-redef]
    else:
        monkeypatch.setitem(sys.modules, "autoprune.api", module)
    for name in NAMES:
        real = getattr(module, name) if exists else None
        monkeypatch.setattr(module, name, recorded.stand_in(name, real), raising=exists)
    return recorded


@dataclass
class Outcome:
    """What one command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], calls: Calls
) -> Callable[..., Outcome]:
    """Run `autoprune …` inside an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> Outcome:
        from autoprune.cli import main

        before = dict(os.environ), list(sys.argv)
        code = main(list(words))
        assert (dict(os.environ), sys.argv) == before
        return Outcome(code, *capsys.readouterr())

    return command
