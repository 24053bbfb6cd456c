"""The software whose versions the run and its workers must share."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

PACKAGES = ("autoprune", "torch", "transformers", "numpy", "safetensors", "tokenizers")


def versions() -> dict[str, str]:
    """Those of this process."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = _own() if name == "autoprune" else "none"
    return found


def _own() -> str:
    """Of a bare checkout, which is not installed."""
    from autoprune import __version__

    return __version__


def difference(run: Mapping[str, str], here: Mapping[str, str]) -> str:
    """`torch 2.13.0, here 2.12.1`: the first that differs, or an empty string."""
    for name, version in run.items():
        if here.get(name) != version:
            return f"{name} {version}, here {here.get(name, 'none')}"
    return ""
