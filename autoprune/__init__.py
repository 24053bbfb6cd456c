"""Finds smaller, faster versions of a trained transformer.

The Python API: `search`, `resume`, `load`, `export`, `recover`, `report` and `Front`. Importing this is light: torch
and the rest come in when one of these names is first used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.api import Front, export, load, recover, report, resume, search

__version__ = "0.8.0"
__all__ = ["Front", "__version__", "export", "load", "recover", "report", "resume", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("autoprune.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Importing the room `autoprune.export` would set it here, over the function; this keeps the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


class _Beside:
    """In a checkout `conf/` and `kernels/` stand beside the package: these two names are looked up there."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in ("autoprune.conf", "autoprune.kernels"):
            return PathFinder.find_spec(name, [str(_root)], target)
        return None


_root = Path(__file__).resolve().parent.parent
sys.modules[__name__].__class__ = _Package
if (_root / "pyproject.toml").is_file() and _Beside not in sys.meta_path:
    sys.meta_path.append(_Beside)
