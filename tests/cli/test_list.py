"""`autoprune list`: everything that can be named, with what it means and its settings; no class is imported."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from autoprune import catalogue
from autoprune.ledger import Ledger
from autoprune.locks import take

CONFIGURED = [
    (folder.name, file.name[:-5])
    for folder in files("autoprune.conf").iterdir()
    if folder.is_dir() and not folder.name.startswith("_")
    for file in folder.iterdir()
    if file.name.endswith(".yaml")
]


def part(group: str, name: str) -> catalogue.Part:
    return next(p for p in catalogue.parts(group) if p.name == name)


def test_every_configuration_is_listed() -> None:
    listed = {(g, p.name) for g in catalogue.groups() for p in catalogue.parts(g)}
    assert set(CONFIGURED) <= listed
    assert {("model", "docs-llama"), ("bench", "search")} <= listed


@pytest.mark.parametrize(("group", "name"), CONFIGURED)
def test_a_part_has_a_line_and_its_settings_with_defaults(group: str, name: str) -> None:
    found = part(group, name)
    assert found.summary and "\n" not in found.summary and len(found.summary) < 140
    text = (files("autoprune.conf") / group / f"{name}.yaml").read_text()
    target = OmegaConf.create(text).get("_target_")
    if target is None:
        return
    parameters = inspect.signature(get_object(target)).parameters
    for setting in found.settings:
        own = setting.name.rsplit(".", 1)[-1]
        if own in parameters:
            default = parameters[own].default
            assert setting.default == (default if isinstance(default, str) else json.dumps(default))


def test_settings_say_what_they_mean() -> None:
    meanings = {s.name: s.meaning for s in part("search", "nsga2").settings}
    assert meanings["search.windows"] == "fitness windows an evaluation"
    assert meanings["search.crossover"].startswith("share of offspring")
    assert all(
        s.meaning for g in ("space", "search", "evaluator") for p in catalogue.parts(g) for s in p.settings
    )


@pytest.mark.parametrize("word", ["search", "searches", "searchers"])
def test_one_group(run: Callable[..., Any], word: str) -> None:
    done = run("list", word)
    assert done.code == 0 and done.out.startswith("search: search=NAME\n")
    assert "  nsga2" in done.out and "search.population=64" in done.out and "docs-llama" not in done.out


def test_listing_imports_nothing_heavy() -> None:
    code = """
import sys
from autoprune.cli import main
assert main(["list"]) == 0
print({"hydra", "torch", "numpy", "pandas", "evaluators", "search_spaces"} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "set()\n", done.stderr
    assert "experiment: +experiment=NAME\n  demo" in done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that stopped before its first result."""
    path = tmp_path / "results" / "sweep" / "0"
    path.mkdir(parents=True)
    search = {"_target_": "autoprune.searchers.random.Random"}
    OmegaConf.save({"model": "/a/tiny", "search": search, "tokens": 2e6}, path / "config.yaml")
    Ledger.create(path / "ledger.sqlite", {"model": "m"}).close()
    return path


def line(run: Callable[..., Any], name: str) -> list[str]:
    done = run("list", "runs")
    assert done.code == 0
    return next(text for text in done.out.splitlines() if text.startswith(name)).split()


def test_runs(run: Callable[..., Any], folder: Path) -> None:
    assert line(run, "sweep/0") == ["sweep/0", "stopped", "tiny", "random", "0/2M", "–"]
    handle = take(folder / ".running")
    assert handle is not None and line(run, "sweep/0")[1] == "running"
    import os

    os.close(handle)  # what a killed process leaves is a file that nobody holds
    assert line(run, "sweep/0")[1] == "stopped"
    ledger = Ledger.open(folder / "ledger.sqlite")
    ledger.event("finished")
    ledger.close()
    assert line(run, "sweep/0")[1] == "broken"
    rows = "key,name,params_ratio,kl_test\na,dense,1,0\nb,front,0.7,0.1\nc,front,0.5,0.4\nd,front,0.3,0.9\n"
    (folder / "leaderboard.csv").write_text(rows)
    assert line(run, "sweep/0")[1] == "finished"
    assert "0.50x: test KL 0.4 (c)" in run("list", "runs", "results").out


def test_damage_is_a_state(run: Callable[..., Any], folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    done = run("list", "runs")
    assert done.code == 0 and "broken" in done.out and "sweep/0: ledger.sqlite cannot be read" in done.out
    (folder / "config.yaml").write_text("a: [")
    assert "sweep/0: config.yaml cannot be read" in run("list", "runs").out


def test_looking_changes_nothing(run: Callable[..., Any], folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.iterdir()}
    run("list", "runs")
    after = {p: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(("-shm", "-wal"))}
    assert after == before
