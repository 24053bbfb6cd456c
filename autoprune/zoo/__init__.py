"""The built-in models: small checkpoints with cards, and the scripts that train them."""

from __future__ import annotations

from pathlib import Path

ROOM = Path(__file__).resolve().parent


def built_in() -> list[str]:
    """Names of the built-in models."""
    return sorted(p.parent.name for p in ROOM.glob("*/config.json"))


def folder_of(name: str) -> Path:
    """The checkpoint folder of a built-in model."""
    return ROOM / name
