"""Run folders as they lie on disk: found, and read without changing or running anything in them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from autoprune.errors import LedgerError
from autoprune.locks import held

CONFIG, LEDGER, TABLE, WORKING = "config.yaml", "ledger.sqlite", "leaderboard.csv", ".running"
State = Literal["finished", "running", "stopped", "broken"]


@dataclass(frozen=True)
class Seen:
    """A run folder: its state, why it is not finished, its settings and identity, fitness tokens so far."""

    path: Path
    name: str  # relative to where it was looked for
    state: State
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    tokens: int = 0


def find_runs(folders: Iterable[str | Path]) -> list[Seen]:
    """All runs in and below the folders, by path; raises LedgerError where there is none."""
    found: dict[Path, Path] = {}
    names: dict[Path, str] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise LedgerError(
                f"{folder} does not exist or is no folder; name a run folder or a folder of runs"
            )
        inside = sorted(_walk(folder))
        if not inside:
            raise LedgerError(f"{folder} holds no run: no {LEDGER} in it or below it")
        for path in inside:
            if found.setdefault(path.resolve(), path) is path:
                names[path] = str(path.relative_to(folder) if path != folder else folder)
    often = Counter(names.values())
    return [look(path, names[path] if often[names[path]] == 1 else str(path)) for path in found.values()]


def _walk(folder: Path) -> Iterator[Path]:
    """Folders that hold a run; nothing below one is looked at."""
    for here, inside, names in os.walk(folder):
        if LEDGER in names or {CONFIG, "environment.json"} <= set(names):
            inside.clear()
            yield Path(here)
        inside[:] = [name for name in inside if not name.startswith(".")]


def look(path: Path, name: str | None = None) -> Seen:
    """What a run folder is; damage is a state, not an error."""
    name = str(path) if name is None else name
    try:
        settings = _settings(path / CONFIG)
        meta, kinds, tokens = _ledger(path / LEDGER)
    except LedgerError as error:
        return Seen(path, name, "broken", str(error))
    state, reason = _state(path, kinds)
    if state in ("running", "stopped"):
        reason += f" at {tokens:,} of {float(settings.get('tokens', 0)):,.0f} tokens"
    if state == "stopped":
        reason += f"; go on with: autoprune resume {path}"
    return Seen(path, name, state, reason, settings, meta, tokens)


def _state(path: Path, kinds: set[str]) -> tuple[State, str]:
    if held(path / WORKING):
        return "running", "still running"
    if "finished" not in kinds:
        return "stopped", "interrupted" if "interrupted" in kinds else "stopped"
    return ("finished", "") if (path / TABLE).is_file() else ("broken", f"finished, but holds no {TABLE}")


def _settings(path: Path) -> dict[str, Any]:
    """The stored settings as plain data: nothing is resolved, nothing instantiated."""
    from omegaconf import OmegaConf

    if not path.is_file():
        raise LedgerError(f"no {path.name}")
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # YAML and OmegaConf raise kinds of their own
        raise LedgerError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise LedgerError(f"{path.name} holds no settings")
    return {str(key): value for key, value in plain.items()}


def _ledger(path: Path) -> tuple[dict[str, str], set[str], int]:
    """Identity, kinds of events and fitness tokens, read without writing."""
    if not path.is_file():
        raise LedgerError(f"no {path.name}")
    try:
        with closing(_reader(path)) as db:
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
            kinds = {kind for (kind,) in db.execute("SELECT DISTINCT kind FROM events")}
            (tokens,) = db.execute("SELECT COALESCE(SUM(tokens), 0) FROM results").fetchone()
    except sqlite3.Error as error:
        raise LedgerError(f"{path.name} cannot be read: {error}") from error
    return meta, kinds, int(tokens)


def _reader(path: Path) -> sqlite3.Connection:
    """Read-only; where even a reader's side file cannot be made, as the file stands."""
    name = f"file:{quote(str(path.absolute()))}?mode=ro"
    db = sqlite3.connect(name, uri=True, timeout=5)
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
        return db
    except sqlite3.OperationalError:
        db.close()
        return sqlite3.connect(f"{name}&immutable=1", uri=True)


def facts(path: Path) -> dict[str, Any]:
    """facts.json of a finished run; empty when it cannot be read."""
    try:
        found = json.loads((path / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def method(settings: Mapping[str, Any]) -> str:
    """The search's name as it is chosen by, else that of its class."""
    search = settings.get("search")
    target = str(search.get("_target_", "")) if isinstance(search, Mapping) else ""
    return _searches().get(target, target.rsplit(".", 1)[-1].lower())


@cache
def _searches() -> dict[str, str]:
    """The name of every configured search by its class."""
    from autoprune.config import GROUPS

    found = {}
    for file in (files(GROUPS) / "search").iterdir():
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            found[first.removeprefix("_target_: ").strip()] = file.name.removesuffix(".yaml")
    return found


def model_name(settings: Mapping[str, Any]) -> str:
    """The last part of the model's name or path."""
    return Path(str(settings.get("model", "")).rstrip("/")).name


def data_name(settings: Mapping[str, Any]) -> str:
    """The last part of the corpus's name or path; `auto` is the built-in one."""
    data = str(settings.get("data", "auto"))
    return "docs" if data == "auto" else Path(data.rstrip("/")).name
