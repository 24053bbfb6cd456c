"""The run folder: what is written there, and how a run is found again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import LedgerError, SettingError
from autoprune.ledger import FILE, Ledger, holds_run
from autoprune.locks import take
from autoprune.runs import CONFIG, WORKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

LATENCY = "latency.json"
ENVIRONMENT = "environment.json"


def claim(folder: Path) -> None:
    """Make the folder; raises when a run lives there already or it cannot be written."""
    if holds_run(folder / FILE):
        raise LedgerError(
            f"out={folder} holds a run already; use `autoprune resume {folder}` or another out="
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise SettingError(f"out={folder} cannot be written: {error.strerror}") from error


def save_settings(folder: Path, cfg: DictConfig, command: str) -> None:
    """Resolved settings, the command and the environment."""
    from omegaconf import OmegaConf

    from autoprune.hardware.fingerprint import environment

    OmegaConf.save(cfg, folder / CONFIG, resolve=True)
    write_json(folder / ENVIRONMENT, {"command": command, **environment()})


def load_settings(folder: Path, trust: bool) -> DictConfig:
    """The stored settings; unless trusted, every `_target_` must be a class of our own rooms."""
    from omegaconf import DictConfig, OmegaConf

    from autoprune.config import validate
    from autoprune.safety import check_targets

    path = folder / CONFIG
    if not path.is_file():
        raise LedgerError(f"{folder} is not a run folder (no {CONFIG})")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:  # YAML and OmegaConf raise kinds of their own
        raise LedgerError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig):
        raise LedgerError(f"{path} holds no settings")
    if not trust:
        check_targets(cfg)
    validate(cfg)
    return cfg


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Mark the run as running while the block runs; raises LedgerError when another process works on it."""
    mark = folder / WORKING
    try:
        handle = take(mark)
    except OSError:  # no locks on this file system
        yield
        return
    if handle is None:
        raise LedgerError(f"{folder} is being worked on by another process; wait for it, or stop it first")
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        os.close(handle)


def open_ledger(folder: Path) -> Ledger:
    """The run's ledger."""
    return Ledger.open(folder / FILE)


def command_of(folder: Path) -> str:
    """The command that started the run."""
    path = folder / ENVIRONMENT
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["command"]) if path.is_file() else ""
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Plain data, readable."""
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
