"""Keeps the configuration of a run folder from executing code that is not ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from autoprune.errors import SettingError

ROOMS = ("autoprune", "search_spaces", "evaluators")


def check_targets(cfg: Any) -> None:
    """Raise SettingError unless every `_target_` of a stored configuration is a class of our own rooms.

    So must a named `adapter` be. Refused too are interpolations (a run stores its settings resolved, and a resolver
    could make a target) and `trust_remote_code`, which would run the code of whatever model the folder names.
    """
    plain = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    for path, key, value in _leaves(plain, ""):
        if key == "_target_" or (path == "adapter" and value is not None):
            _check_class(path, value)
        if key == "trust_remote_code" and value is not False:
            raise SettingError(f"{path}={value} would run the model's own code; pass --trust to allow it")
        if any(isinstance(part, str) and "${" in part for part in (key, value)):
            raise SettingError(
                f"{path}={value} holds an interpolation, which no run stores; pass --trust to run it"
            )


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(node, (Mapping, list, tuple)):
        pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in pairs:
            here = f"{path}.{key}".lstrip(".")
            if key == "_target_" or not isinstance(value, (Mapping, list, tuple)):
                yield here, key, value
            else:
                yield here, key, None
                yield from _leaves(value, here)


def _check_class(path: str, target: object) -> None:
    if not (isinstance(target, str) and _ours(target) and _is_class(target)):
        raise SettingError(f"{path}={target} is not a class of {', '.join(ROOMS)}; pass --trust to run it")


def _ours(name: str) -> bool:
    return name.split(".")[0] in ROOMS


def _is_class(target: str) -> bool:
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception:  # whatever importing a name from a stranger's file may raise
        return False
    return isinstance(found, type) and _ours(found.__module__)
