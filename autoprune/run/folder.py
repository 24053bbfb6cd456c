"""The run folder: what is written there, and how a run is found again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.disk import disk_full
from autoprune.errors import LedgerError, SettingError, StoppedError
from autoprune.ledger import FILE, Ledger, holds_run
from autoprune.locks import lock
from autoprune.runs import CONFIG, WORKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

LATENCY = "latency.json"
ENVIRONMENT = "environment.json"
TRIES = 5  # to take the mark of a run


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


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keep other processes from working on this run; the system lets go when we end, however we end.

    Raises LedgerError naming the process that holds it, SettingError where the folder cannot be written.
    """
    mark = folder / WORKING
    handle = _marked(mark)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            mark.unlink()  # while it is still ours
        os.close(handle)


def _marked(mark: Path) -> int:
    for _ in range(TRIES):
        try:
            handle = os.open(mark, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SettingError(f"{mark.parent} cannot be written: {error.strerror}") from error
        if _ours(handle):
            with suppress(OSError):
                if os.fstat(handle).st_ino == os.stat(mark).st_ino:
                    return handle  # else its holder removed it just now
        holder = os.read(handle, 32).decode().strip() or "another one"
        os.close(handle)
        time.sleep(0.02)  # who only asks whether it is held holds it for a moment
    raise LedgerError(f"{mark.parent} is being worked on by process {holder}; wait for it, or end it")


def _ours(handle: int) -> bool:
    """Whether we hold the lock now, or there are none on this file system."""
    with suppress(OSError):
        return lock(handle, wait=False)
    return True


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say how to go on when something beyond the run stops it: a full disk, workers that die."""
    try:
        yield
    except StoppedError as error:
        raise StoppedError(f"{error}; {_onward(folder)}") from error
    except Exception as error:
        if not disk_full(error):
            raise
        reason = " ".join(str(error).split())
        raise StoppedError(f"the disk is full ({reason}); free some space, then {_onward(folder)}") from error


def _onward(folder: Path) -> str:
    if holds_run(folder / FILE):
        return f"continue with: autoprune resume {folder}"
    return "start it again: the run had not begun"


def save_settings(
    folder: Path, cfg: DictConfig, command: str, device: str = "cpu", placement: str = ""
) -> None:
    """Resolved settings, the command and the environment with its device, and where weights were placed, if told."""
    from omegaconf import OmegaConf

    from autoprune.hardware.fingerprint import environment

    OmegaConf.save(cfg, folder / CONFIG, resolve=True)
    placed = {"placement": placement} if placement else {}
    write_json(folder / ENVIRONMENT, {"command": command, **environment(device), **placed})


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
