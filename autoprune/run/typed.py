"""Settings against the types in the signature of what they are for: Hydra passes on whatever was written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from autoprune.errors import SettingError

if TYPE_CHECKING:
    from omegaconf import DictConfig

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def check_types(node: DictConfig, group: str) -> None:
    """Raise SettingError for a setting of another type than the constructor of the node's `_target_` names.

    What it does not name, or names by types that exist for type checkers only, is left to it; a class that is not
    found is left to whoever makes it.
    """
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    try:
        known = inspect.signature(get_class(node["_target_"]), eval_str=True).parameters
    except (NameError, ImportError):
        return
    settings: Any = OmegaConf.to_object(node)
    for name, parameter in known.items():
        if name in settings and not _fits(settings[name], parameter.annotation):
            said = "null" if settings[name] is None else settings[name]
            raise SettingError(f"{group}.{name}={said} must be {_told(parameter.annotation)}")


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is float:
        return type(value) in (int, float) and not math.isnan(value)  # type: ignore[arg-type]
    return hint not in NAMES or type(value) is hint


def _told(hint: Any) -> str:
    if get_origin(hint) is Sequence:
        return f"a list, each of it {_told(get_args(hint)[0])}"
    return NAMES.get(hint) or " or ".join(map(_told, get_args(hint)))
