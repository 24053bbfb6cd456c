"""Prompts with their answers, from JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """What a model is given, what it should write, and the line of the file."""

    prompt: str
    answer: str
    line: int


def read_prompts(file: Path, setting: str) -> list[Prompt]:
    """Every line that is not blank; DataError naming the file and the line that is wrong."""
    if not file.is_file():
        raise DataError(
            f'{setting}={file} does not exist; give a file of JSON lines {{"prompt": "…", "answer": "…"}}'
        )
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    found = [_prompt(text, number, file) for number, text in lines if text.strip()]
    if not found:
        raise DataError(f"{setting}={file} has no prompts")
    return found


def _prompt(text: str, line: int, file: Path) -> Prompt:
    where = f"{file} line {line}"
    try:
        item = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    for key in ("prompt", "answer"):
        value = item.get(key) if isinstance(item, dict) else None
        if not isinstance(value, str):
            raise DataError(f'{where} has no text {key!r}; wanted: {{"prompt": "…", "answer": "…"}}')
        if not value.strip():
            raise DataError(f"{where}: the {key} is empty")
    return Prompt(item["prompt"], item["answer"].strip(), line)
