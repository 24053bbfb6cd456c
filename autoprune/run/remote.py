"""A run's search evaluation as a spec, and that evaluation built again from it in another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autoprune.device import of_workers
from autoprune.errors import LedgerError
from autoprune.evaluation import Evaluation
from autoprune.executors.base import Spec
from autoprune.executors.versions import versions
from autoprune.labelled import BUILT_IN
from autoprune.objective import Objective
from autoprune.progress import Progress
from autoprune.run.parts import Parts, open_parts, search_evaluation
from autoprune.study import SupernetSpec
from autoprune.zoo import built_in


def spec_of(parts: Parts, supernet: SupernetSpec | None = None) -> Spec:
    """Plain data from which `evaluation` builds the same again; `supernet` is what `parts` were rebuilt with."""
    settings = OmegaConf.to_container(parts.cfg, resolve=True)
    assert isinstance(settings, dict)
    plain = {str(k): v for k, v in settings.items()}
    plain["device"] = of_workers(parts.cfg, str(parts.device))
    inputs = _absolute(plain)
    root = parts.cache.root.absolute()
    needed = tuple(str(a.absolute().relative_to(root)) for a in parts.cache.used if _needed(a, parts))
    return Spec(plain, parts.digests, str(root), supernet, inputs, needed, versions())


def _absolute(settings: dict[str, Any]) -> tuple[str, ...]:
    """Files and folders that settings name, made absolute there: a worker stands somewhere else."""
    found = []
    names = {"model": built_in(), "data": ["auto", *BUILT_IN.values()], "reference": ["dense"]}
    for name, known in names.items():
        place = settings["calibration"] if name == "reference" else settings
        path = Path(str(place[name])).expanduser()
        if place[name] not in known and path.exists():
            place[name] = str(path.absolute())
            found.append(place[name])
    return tuple(dict.fromkeys(found))


def _needed(artifact: Path, parts: Parts) -> bool:
    """Whether a worker reads it: all but latencies, teachers (which it makes as it goes) and other phases' ladders."""
    if artifact.parent.name == "ladders":
        return artifact.name == parts.ladder_folder.name
    return artifact.parent.name not in ("latency", "teacher", "shipped")


def evaluation(spec: Spec) -> Evaluation:
    """The search's evaluation; raises as `parts_of` does."""
    parts = parts_of(spec)
    return search_evaluation(parts, [Objective(str(m)) for m in parts.cfg.objectives])


def parts_of(spec: Spec) -> Parts:
    """What the search works with; ladders and tokens come from the artifact cache, memory-mapped.

    Raises LedgerError when the model, the corpus or the ladders found here are not those of the spec.
    """
    cfg = OmegaConf.create(dict(spec.settings))
    assert isinstance(cfg, DictConfig)
    progress = Progress(quiet=True)
    parts = open_parts(cfg, progress)
    if spec.supernet is not None:
        parts = parts.rebuilt(spec.supernet, progress)
    for name, value in spec.digests.items():
        if parts.digests[name] != value:
            raise LedgerError(
                f"a worker found another {name} ({parts.digests[name]}) than the run's ({value}); workers must see "
                "the same model, data and artifact cache"
            )
    return parts
