"""--help: short, true and quick; the set of options changes only on purpose."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from autoprune.cli import COMMANDS, help_text
from autoprune.commands.search import SWITCHES, VALUED
from autoprune.config import Config, compose

OPTIONS = {
    "demo": "[--out DIR]",
    "resume": "[--fork NEW] [--trust] DIR",
    "report": "[--trust] DIR [DIR ...]",
    "leaderboard": (
        "[--csv FILE] [--md FILE] [--html FILE] [--by COLUMN] [--reverse] [--where COND] [--cost COLUMN] "
        "[--all] DIR [DIR ...]"
    ),
    "export": "(--key K | --params 0.6x | --prefill 0.6x | --decode 0.6x) --to OUT [--refit] [--int8] "
    "[--recovery NAME] [--recovery-steps N] [--trust] DIR",
    "recover": "--teacher MODEL --data DATA --to OUT [--seed S] [--recovery-steps N] "
    "CHECKPOINT [key=value ...]",
    "profile": "[--to FILE] MODEL [key=value ...]",
    "zoo": "[--to DIR] [--data DATA] {train} NAME",
    "bench": "NAME ...",
    "study": "--to DIR [--data DATA] [--plans N] [--ratio 0.5x] [--steps N] [--windows N] [--seed S] "
    "[--plan PLAN] [--seeds N] [--search-tokens N] {oracle,scratch} MODEL [key=value ...]",
    "list": "[GROUP] [DIR]",
    "cache": "[--kind KIND] [--each] [--older 30d] [--keep 5GB] [--dry-run] [list|prune|path]",
    "kernels": "[build|show]",
    "submit": "[--dry-run | --no-wait | --list | --status ID | --logs ID | --stop ID | --down] "
    "cluster=NAME [cluster.key=value ...] -- COMMAND",
}
SETTINGS = (
    "model data out objectives constraints targets tokens evaluations seconds seed window prompt_len hidden sequences "
    "threads precision device space search evaluator executor recovery calibration selection_windows test_windows "
    "finalists front_points uniform baselines latency export memory_mb stream stream_mb device_mb host_mb "
    "trust_remote_code adapter quiet"
)


def test_the_options_are_these() -> None:
    assert {name: command.usage(name) for name, command in COMMANDS.items()} == {
        name: f"{name} {options}".strip() for name, options in OPTIONS.items()
    }
    assert [f.name for f in fields(Config)] == SETTINGS.split()
    assert (*SWITCHES, *VALUED) == ("-m", "--multirun", "--resolve", "--cfg", "--config-dir")


def test_help_is_short_and_names_every_command() -> None:
    text = help_text()
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 100
    assert all(f"  {name}" in text for name in COMMANDS)


def test_the_settings_that_help_shows_are_the_defaults() -> None:
    cfg = compose(["model=x"])
    assert cfg.seed == 0 and cfg.tokens == 1e6 and list(cfg.objectives) == ["kl", "params"]
    assert list(cfg.space) == ["structured"] and cfg.search._target_.endswith(".Auto")


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], [], ["model=x", "--help"], ["export", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from autoprune.cli import main
assert main({words!r}) == 0
print({{"hydra", "omegaconf", "torch", "numpy", "pandas", "rich"}} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "set()\n", done.stderr
    assert done.stdout.startswith("usage:") or words == ["--version"]


def test_python_m_autoprune() -> None:
    done = subprocess.run([sys.executable, "-m", "autoprune", "exprot"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "autoprune: unknown command 'exprot'; did you mean 'export'?\n"
