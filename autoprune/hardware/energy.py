"""Joules from the machine's own counters: RAPL on CPUs that have it, NVML on NVIDIA cards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
LEAST_SECONDS = 0.5  # counters tick every millisecond or slower: what is shorter is repeated


def counter(powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """A function that tells the joules used so far, or None where nothing counts them (or only root may look)."""
    zones = [z / "energy_uj" for z in sorted(powercap.glob("intel-rapl:*")) if z.name.count(":") == 1]
    try:
        if zones and all(int(z.read_text()) >= 0 for z in zones):
            return lambda: sum(int(z.read_text()) for z in zones) / 1e6
    except (OSError, ValueError):
        pass
    return _card()


def _card() -> Callable[[], float] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except Exception:  # no library, no card, or one without a counter
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(card)) / 1e3


def joules(run: Callable[[], None], powercap: Path = POWERCAP) -> float | None:
    """Joules of one `run` of the whole package or card, whatever else runs there; None without a counter."""
    tell = counter(powercap)
    if tell is None:
        return None
    run()
    started, before, count = time.monotonic(), tell(), 0
    while time.monotonic() - started < LEAST_SECONDS:
        run()
        count += 1
    used = (tell() - before) / count
    return used if used >= 0 else None  # the counter began anew
