"""Proof that a checkpoint on disk is the model it was written from: reloaded in a fresh process, compared."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from autoprune.errors import ExportError
from autoprune.export.modeling.modeling_autoprune import MixedConfig
from autoprune.forward import logits_of

LOGIT_TOLERANCE = 1e-4
CACHED_TOLERANCE = 1e-3
SIZE_TOLERANCE = 0.01
Probe = Tensor | Mapping[str, Tensor]
SIZE_SLACK = 64 * 1024  # bytes of safetensors headers


@dataclass(frozen=True)
class RoundTrip:
    """Figures of a round trip that passed; `expected_bytes` is that of the tensors. A classifier has no cache."""

    max_logit_difference: float
    cached_difference: float
    parameters: int
    file_bytes: int
    expected_bytes: int


@dataclass(frozen=True)
class Reloaded:
    """What the fresh process saw: logits, those of the last positions with a cache (none of a classifier),
    parameters, and the module that the model's class came from."""

    full: Tensor
    cached: Tensor | None
    parameters: int
    module: str


def prove(model: PreTrainedModel, folder: Path, ids: Probe, expected_parameters: int) -> RoundTrip:
    """Reload `folder` in a fresh process and hold it against `model` on ids [B, T >= 2], in fp32 on the CPU.

    A classifier is given what its forward takes, by name.

    Raises ExportError naming the figure that is off: logits, logits with a cache, parameters (tied weights
    count once) or the size of the weight files.
    """
    return judge(model, folder, ids, expected_parameters, reload([folder], ids)[0])


def reload(folders: Sequence[Path], ids: Probe) -> list[Reloaded]:
    """Run checkpoints in one fresh process that has transformers but not autoprune; raises ExportError.

    Only where weights are stored in int8 it has autoprune, too.
    """
    if isinstance(ids, Tensor) and (ids.ndim != 2 or ids.shape[1] < 2):
        raise ExportError(f"a round trip needs ids of shape [batch, at least 2], not {list(ids.shape)}")
    probe = {"ids": ids} if isinstance(ids, Tensor) else ids
    with tempfile.TemporaryDirectory(prefix="autoprune-roundtrip-") as place:
        save_file({n: t.cpu().contiguous() for n, t in probe.items()}, Path(place) / "ids.safetensors")
        _spawn([str(Path(folder).resolve()) for folder in folders], place)
        return [_read(Path(place) / f"{index}.safetensors") for index in range(len(folders))]


def judge(
    model: PreTrainedModel,
    folder: Path,
    ids: Probe,
    expected_parameters: int,
    seen: Reloaded,
    expected_bytes: int | None = None,
) -> RoundTrip:
    """Compare what the fresh process saw with `model`; raises ExportError naming the figure that is off.

    `expected_bytes` of the weights in `folder`: those of the model's parameters, unless told.
    """
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    want, cached = _logits(model, ids, 0 if seen.cached is None else seen.cached.shape[1])
    trip = RoundTrip(
        max_logit_difference=_difference(seen.full, want),
        cached_difference=0.0 if seen.cached is None else _difference(seen.cached, cached),
        parameters=seen.parameters,
        file_bytes=sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")),
        expected_bytes=whole if expected_bytes is None else expected_bytes,
    )
    _check(trip, folder, expected_parameters)
    return trip


def _check(trip: RoundTrip, folder: Path, expected_parameters: int) -> None:
    off = f"the round trip of {folder} failed:"
    full, cached = trip.max_logit_difference, trip.cached_difference
    if not full <= LOGIT_TOLERANCE:  # not ">", which lets NaN pass
        raise ExportError(f"{off} logits differ by {full:.3g}, allowed {LOGIT_TOLERANCE:g}")
    if not cached <= CACHED_TOLERANCE:
        raise ExportError(f"{off} logits with a cache differ by {cached:.3g}, allowed {CACHED_TOLERANCE:g}")
    if trip.parameters != expected_parameters:
        raise ExportError(f"{off} {trip.parameters} parameters, expected {expected_parameters}")
    if abs(trip.file_bytes - trip.expected_bytes) > SIZE_TOLERANCE * trip.expected_bytes + SIZE_SLACK:
        raise ExportError(f"{off} weight files of {trip.file_bytes} bytes, expected {trip.expected_bytes}")


def _spawn(folders: list[str], place: str) -> None:
    script = Path(__file__).with_name("reload.py")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(Path(place) / "modules"),  # no stale modelling file
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    if any((Path(folder) / "int8").is_dir() for folder in folders):  # the package, wherever it stands
        root, paths = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{paths}" if paths else root
    # -P: neither the script's folder nor the current one is searched for modules
    command = [sys.executable, "-P", str(script), str(Path(place) / "ids.safetensors"), place, *folders]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"the round trip of {', '.join(folders)} failed in a fresh process: {last}")


def _read(file: Path) -> Reloaded:
    with safe_open(file, framework="pt") as opened:
        facts = opened.metadata()
        full = opened.get_tensor("full")
        cached = opened.get_tensor("cached") if "cached" in opened.keys() else None  # noqa: SIM118 - no dict
        return Reloaded(full, cached, int(facts["parameters"]), facts["module"])


def _logits(model: PreTrainedModel, ids: Probe, steps: int) -> tuple[Tensor, Tensor]:
    """Logits without and the last `steps` with a cache, in float32 on the CPU, of a copy where need be.

    With a cache that keeps everything they are the same, and of a classifier, which has none.
    """
    parameters = list(model.parameters())
    exact = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    reference: Any = model if exact and not model.training else copy.deepcopy(model)
    if reference is not model:
        reference.to("cpu", torch.float32).eval()
    with torch.inference_mode():
        if not isinstance(ids, Tensor):
            found: Tensor = reference(**{name: tensor.cpu() for name, tensor in ids.items()}).logits
            return found, found
        logits: Tensor = reference(ids.cpu(), use_cache=False).logits
        cuts = isinstance(reference.config, MixedConfig) and reference.config.cuts()
        decoded = logits_of(reference, ids, ids.shape[1] - steps + 1) if cuts else logits
    return logits, decoded[:, -steps:]


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite for different shapes."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")
