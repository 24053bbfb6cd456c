"""What a measured time depends on: the device and the software that ran it, as plain data."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
FLAGS = (
    *("avx", "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_vbmi2"),
    *("amx_tile", "amx_bf16", "amx_int8", "neon", "asimd", "sve", "bf16", "i8mm"),
)
VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "MKL_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS"),
    *("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"),
)
LIBRARIES = (
    *("autoprune", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "hydra-core"),
    *("ray", "optuna", "pymoo", "lm-eval"),
)

Value = str | int


def fingerprint(threads: int, device: str = "cpu") -> dict[str, Value]:
    """All that a latency depends on besides the model; two machines with equal ones may share a table."""
    return {
        **(_gpu(device) if torch.device(device).type == "cuda" else {}),
        **_cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "threads": threads,
        **{name: os.environ.get(name, "") for name in VARIABLES},
    }


def environment(device: str = "cpu") -> dict[str, Value]:
    """For a run folder: the fingerprint, the platform, the versions of libraries and the commit, if any."""
    facts = fingerprint(torch.get_num_threads(), device) | {"device": device}
    facts |= {"platform": platform.platform(), "implementation": platform.python_implementation()}
    facts |= {name: version for name in LIBRARIES if (version := _version(name))}
    facts |= _commit(Path(__file__).resolve().parents[2])
    return facts


def differing(measured: Mapping[str, Value], here: Mapping[str, Value]) -> str:
    """`field='then', here 'now'` of the first field that differs, or an empty string."""
    for name in {**measured, **here}:
        if measured.get(name, "") != here.get(name, ""):
            return f"{name}={measured.get(name, '')!r}, here {here.get(name, '')!r}"
    return ""


def last_level_cache(device: str = "cpu") -> int | None:
    """Bytes of the largest cache, or None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_bytes(size) for name, size in _caches() if not name.endswith("Instruction")]
    return max(sizes, default=None)


def _cpu() -> dict[str, Value]:
    info = _cpuinfo()
    present = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name") or info.get("CPU part") or _apple_name() or platform.machine(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "flags": " ".join(flag for flag in FLAGS if flag in present),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "caches": " ".join(f"{name}:{size}" for name, size in _caches()),
    }


def _gpu(device: str) -> dict[str, Value]:
    facts = torch.cuda.get_device_properties(device)
    return {
        "gpu": facts.name,
        "multiprocessors": facts.multi_processor_count,
        "gpu_memory": facts.total_memory,
        "cuda": torch.version.cuda or "",
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines; empty where there is no such file."""
    try:
        lines = CPUINFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> list[tuple[str, str]]:
    """(`L3Unified`, `32768K`) of each cache that the first processor sees."""

    def read() -> Iterator[tuple[str, str]]:
        for folder in sorted(CACHES.glob("index*")):
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
            yield f"L{level}{kind}", size

    try:
        return list(read())
    except OSError:
        return []


def _bytes(size: str) -> int:
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 1)
    return int(size.rstrip("KMG") or 0) * scale


def _apple_name() -> str:
    return _output("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _commit(root: Path) -> dict[str, Value]:
    """The commit of our own checkout; nothing when installed into somebody else's."""
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root:
        return {}
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": _output("git", "-C", str(root), "rev-parse", "HEAD"), "changed": int(bool(changed))}


def _output(*command: str) -> str:
    """What a command prints; empty when there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
