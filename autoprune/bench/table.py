"""What benchmarks share: how their arguments are read and their tables are published."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoprune.commands.parser import Parser


def parser(name: str, doc: str | None, model: bool = True) -> argparse.ArgumentParser:
    """Arguments of `autoprune bench NAME`: `--to`, and with `model` also `--model` and `--data`."""
    found = Parser(prog=f"autoprune bench {name}", description=(doc or "").partition("\n")[0])
    if model:
        found.add_argument("--model", default="docs-llama", help="a built-in name or a folder")
        found.add_argument("--data", default="auto", help="a built-in name, a file or a folder")
    found.add_argument("--to", default=f"results/bench/{name}.md", help="the table")
    return found


def count(text: str) -> int:
    """A whole number of at least 1, as an argument."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def publish(name: str, doc: str | None, args: Sequence[str], table: str, to: str | Path) -> None:
    """Print a table and write it under what it shows and the command that remakes it."""
    print(table)
    target = Path(to)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["autoprune", "bench", name, *args])
    target.write_text(f"{doc}\nRemade by: `{command}`\n\n{table}\n", encoding="utf-8")


def spread(values: Sequence[float], digits: int = 4) -> str:
    """A mean with the standard deviation over seeds, where there are several: `0.0113 ± 0.0004`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
