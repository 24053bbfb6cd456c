"""`device=`: where models run. Read without torch; looked for where a run starts."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, nearest

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

WORDS = ("auto", "cpu", "cuda", "cuda:N")
NUMBERED = re.compile(r"cuda:\d+")
OF_WORKERS = "cuda"  # Ray shows a worker its own GPUs only, so the first is its


def check_device(cfg: DictConfig) -> None:
    """Raise SettingError for an unknown word, and for a device that the executor's workers would not have."""
    if cfg.get("device") is None:
        return
    named, gpus = _named(cfg), _gpus(cfg)
    if named not in WORDS[:-1] and not NUMBERED.fullmatch(named):
        raise SettingError(f"device={named} is unknown" + nearest(named, WORDS))
    if gpus is None:
        return
    if named == "cpu" and gpus > 0:
        raise SettingError(
            f"device=cpu leaves the GPUs of executor.gpus={gpus:g} idle; allowed: device=auto, cuda, or executor.gpus=0"
        )
    if named.startswith("cuda") and not gpus > 0:
        raise SettingError(
            f"device={named}: the executor's workers have no GPU; give them one by executor.gpus=1, or a part by 0.5"
        )


def device_of(cfg: DictConfig) -> torch.device:
    """The device of this process; settings from before there was a choice mean the CPU.

    `auto` is a GPU where there is one, unless workers evaluate, and have none. Raises SettingError naming what there
    is for a GPU that is not there.
    """
    import torch

    named, found = _named(cfg), _there()
    if named == "auto":
        workers = _gpus(cfg)
        return torch.device("cuda" if found and (workers is None or workers > 0) else "cpu")
    device = torch.device(named)
    if device.type == "cuda" and (device.index or 0) >= len(found):
        have = ", ".join(["cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(found))])
        raise SettingError(f"device={named} is not on {platform.node()}, which has {have}")
    return device


def exact(device: torch.device) -> None:
    """Products of fp32 numbers on a GPU are fp32's, whatever the container's settings allow."""
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def settle(cfg: DictConfig, recorded: str) -> None:
    """A run that began on the CPU stays there, unless its settings name another device."""
    if _named(cfg) == "auto" and recorded == "cpu":
        cfg.device = "cpu"


def make_do(cfg: DictConfig) -> None:
    """For looking at a run that is over any device will do."""
    try:
        device_of(cfg)
    except SettingError:
        cfg.device = "cpu"


def check_room(device: torch.device, needed: int, what: str) -> None:
    """Raise SettingError where a GPU has not so many bytes left."""
    import torch

    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise SettingError(
            f"device={device} has {free / 1e6:,.0f} MB left, and {what} takes {needed / 1e6:,.0f} MB; "
            "stream=host leaves it in the machine's memory, device=cpu works without the GPU"
        )


def of_workers(cfg: DictConfig, here: str) -> str:
    """The device of the executor's workers, where the run itself is on device `here`."""
    return OF_WORKERS if _has_workers_with_gpus(cfg) else here


def searched_on(cfg: DictConfig, here: torch.device) -> str:
    """Where plans are evaluated, for the ledger: `cpu`, or the GPU's name; of workers that they have GPUs."""
    if _has_workers_with_gpus(cfg):
        return f"GPUs of the workers (executor.gpus={_gpus(cfg):g})"
    return described(here)


def _has_workers_with_gpus(cfg: DictConfig) -> bool:
    return cfg.get("device") is not None and (_gpus(cfg) or 0) > 0


def described(device: torch.device) -> str:
    """`cpu`, or `cuda:0 (name)`."""
    import torch

    if device.type != "cuda":
        return device.type
    return f"cuda:{device.index or 0} ({torch.cuda.get_device_name(device)})"


def _named(cfg: DictConfig) -> str:
    return str(cfg.get("device") or "cpu")


def _gpus(cfg: DictConfig) -> float | None:
    """GPUs of each worker; None where the run's own process evaluates."""
    executor: Mapping[str, Any] = cfg.get("executor") or {}
    found = executor.get("gpus")
    return float(found) if isinstance(found, int | float) else None


def _there() -> list[str]:
    """The names of the GPUs of this machine."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)]
