"""How settings are written on the command line, and what to say when one is wrong."""

from __future__ import annotations

import os
import re
from importlib.resources import files

from autoprune.errors import SettingError, nearest

CLUSTER = ("address", "working_dir", "results", "token_file", "folder", "image", "python")
# free text: Hydra's grammar would refuse many paths
FREE = ("model", "data", "out", "latency.file", *(f"cluster.{name}" for name in CLUSTER))


def quote(setting: str, sweep: bool = False) -> str:
    """A free-text setting in quotes for Hydra, `~` expanded; in a sweep each part between commas by itself.

    `latency=FILE` is short for `latency.file=FILE`, `evaluator.tasks=[…]` for `evaluator.tasks.tasks=[…]`. Other
    settings, `null` and what stands in quotes are left alone. Raises SettingError when it is empty.
    """
    setting = re.sub(r"^latency=(?!\{)", "latency.file=", setting)
    setting = re.sub(r"^evaluator\.tasks=(?!\{)", "evaluator.tasks.tasks=", setting)
    key, equals, value = setting.partition("=")
    if key.lstrip("+") not in FREE or not equals or value == "null" or re.fullmatch(r"(['\"]).+\1", value):
        return setting
    parts = value.split(",") if sweep else [value]
    if not all(parts):
        raise SettingError(f"{setting!r}: the value of {key} is empty; it must name something")
    return f"{key}=" + ",".join(map(_quoted, parts))


def _quoted(text: str) -> str:
    # Hydra reads a backslash as itself, except before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), os.path.expanduser(text))
    return f"'{escaped}'"


def explain(error: BaseException) -> str | None:
    """One line for an error of Hydra or OmegaConf, with the nearest allowed name; None for any other."""
    from hydra.errors import (
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; settings are key=value, special characters inside quotes"
    if isinstance(error, MissingConfigException):
        return _unknown_choice(str(error))
    if isinstance(error, InstantiationException) and not isinstance(
        error.__cause__, (TypeError, ImportError)
    ):
        return None  # a fault inside the class, not in its settings
    for cause in (error.__cause__, error):
        if isinstance(cause, OmegaConfBaseException):
            return _wrong_setting(cause)
    return " ".join(str(error).split()) if isinstance(error, HydraException) else None


def _unknown_choice(message: str) -> str:
    found = re.search(r"(?:find|load) '([^']+)'", message)  # Hydra leaves the error's own fields empty
    group, _, name = (found[1] if found else message).rpartition("/")
    folder = files("autoprune.conf") / group
    choices = (
        [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]
        if folder.is_dir()
        else []
    )
    return f"{group}={name} is unknown" + (nearest(name, choices) if choices else "")


def _wrong_setting(error: BaseException) -> str:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

    key = getattr(error, "full_key", None)
    if isinstance(error, MissingMandatoryValue):
        return f"{key}=… is required"
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        parent = error.parent_node
        allowed = [str(k) for k in parent] if parent is not None else []
        return f"unknown setting {key!r}" + (nearest(str(error.key), allowed) if allowed else "")
    return f"{key}: " * bool(key) + str(error).splitlines()[0]
