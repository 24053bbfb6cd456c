"""Checks of settings that methods share: what is out of range is told by name, value and what is allowed."""

from __future__ import annotations

from autoprune.errors import SettingError


def at_least(name: str, value: float | None, least: float, null: bool = False) -> None:
    """Raise SettingError for `search.NAME` below `least`; `null`: None is a value, too."""
    if not (value is None and null or value is not None and value >= least):
        raise SettingError(f"search.{name}={value} must be at least {least:g}" + ", or null" * null)


def share(name: str, value: float | None, null: bool = False) -> None:
    """Raise SettingError for `search.NAME` that is not between 0 and 1; `null`: None is a value, too."""
    if not (value is None and null or value is not None and 0.0 <= value <= 1.0):
        raise SettingError(f"search.{name}={value} is not between 0 and 1" + ", or null" * null)


def smallest(value: float) -> None:
    """Raise SettingError for a `search.smallest` that leaves nothing to search: at 1 there is the dense model only."""
    if not 0.0 <= value < 1.0:
        raise SettingError(f"search.smallest={value} must be at least 0 and below 1")
