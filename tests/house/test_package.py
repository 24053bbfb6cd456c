"""The lazy API of the package."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

import autoprune

API = """
import sys, types
api = types.ModuleType("autoprune.api")
for name in ("search", "resume", "load", "export", "report", "Front"):
    setattr(api, name, name.upper())
sys.modules["autoprune.api"] = api
import autoprune
assert autoprune.export == "EXPORT" and autoprune.report == "REPORT"
from autoprune import Front, search
import autoprune.export, autoprune.report.leaderboard
assert autoprune.export == "EXPORT" and autoprune.report == "REPORT", "a room hides the function of its name"
assert sys.modules["autoprune.report.leaderboard"].__name__ == "autoprune.report.leaderboard"
"""


def test_rooms_do_not_hide_the_functions_of_their_names() -> None:
    done = subprocess.run([sys.executable, "-c", API], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_come_from_the_api_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autoprune.api", SimpleNamespace(search=3))  # type: ignore[arg-type]
    assert autoprune.search == 3
    with pytest.raises(AttributeError, match="serach"):
        autoprune.serach  # noqa: B018


def test_other_submodules_are_still_attributes() -> None:
    import autoprune.errors

    assert isinstance(autoprune.errors, ModuleType)
