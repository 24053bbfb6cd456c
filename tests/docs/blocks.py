"""The code blocks of a page, and running them small.

What is run is what stands on the page, but for three things, which `small` and `small_python` say: the budget
(`tokens=…`), the built-in model where one is named (a tiny random one and its text take its place), and further
settings that make windows short and finals few.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from autoprune.cli import main

ROOT = Path(__file__).resolve().parents[2]
TOKENS = "6000"
SETTINGS = [
    *("window=32", "calibration.tokens=1024", "selection_windows=8", "test_windows=8", "finalists=8"),
    *("front_points=4", "uniform=[0.8,0.5]", "quiet=true"),
]
UNTIMED = ["latency.mode=off"]
TIMED = [
    "latency.rounds=5",
    "latency.stale=keep",
    "latency.prefill_tokens=8",
    "latency.context=8",
    "latency.decode_steps=1",
]
STAND_INS = {"docs-llama": "my-model"}  # what is named on a page: what is used here
DATA = "data=my-text.txt"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(page: str, section: str = "") -> list[Block]:
    """The fenced blocks of a page, or of one of its sections (from its heading to the next of that rank)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if section:
        rank = section.split()[0]
        text = re.split(rf"(?m)^{rank} ", text.split(f"\n{section}\n", 1)[1])[0]
    return [Block(m[1], m[2]) for m in re.finditer(r"(?ms)^```(\w*)\n(.*?)^```$", text)]


def commands(block: Block) -> list[list[str]]:
    """The command lines of a shell block, as words."""
    return [shlex.split(line, comments=True) for line in block.text.splitlines() if line.strip()]


def small(words: list[str]) -> list[str]:
    """The same command on the tiny model with a tiny budget."""
    if not any("=" in word for word in words):
        return words
    named = {f"model={name}": f"model={stand_in}" for name, stand_in in STAND_INS.items()}
    changed = [re.sub(r"^tokens=.*", f"tokens={TOKENS}", named.get(word, word)) for word in words]
    timed = any("decode" in word or "prefill" in word for word in words)
    extra = [] if any(word.startswith("data=") for word in words) else [DATA]
    extra += [] if any(word.startswith("tokens=") for word in words) else [f"tokens={TOKENS}"]
    method = next((w.removeprefix("search=") for w in words if w.startswith("search=")), "auto")
    extra += ["search.population=8"] if method == "nsga2" else []
    return [*changed, *extra, *SETTINGS, *(TIMED if timed else UNTIMED)]


def small_python(text: str) -> str:
    """The same code on the tiny model with a tiny budget."""
    settings = [*SETTINGS, *UNTIMED]
    for name, stand_in in STAND_INS.items():
        text = text.replace(f'"{name}"', f'"{stand_in}", data="my-text.txt", settings={settings!r}')
    return re.sub(r"tokens=[\d.e]+", f"tokens={TOKENS}", text)


def run_shell(words: list[str], patch: pytest.MonkeyPatch) -> int:
    """Run `[NAME=VALUE] autoprune …` in this process; its exit code."""
    while "=" in words[0]:
        name, _, value = words[0].partition("=")
        assert name == "PYTHONPATH", words
        patch.syspath_prepend(str(Path(value).absolute()))
        words = words[1:]
    assert words[0] == "autoprune", f"this test does not know how to run {words}"
    return main(small(words[1:]))
