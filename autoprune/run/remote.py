"""A run's search evaluation as a spec, and that evaluation built again from it in another process."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from autoprune.errors import LedgerError
from autoprune.evaluation import Evaluation
from autoprune.executors.base import Spec
from autoprune.objective import Objective
from autoprune.progress import Progress
from autoprune.run.parts import Parts, open_parts, search_evaluation
from autoprune.study import SupernetSpec


def spec_of(parts: Parts, supernet: SupernetSpec | None = None) -> Spec:
    """Plain data from which `evaluation` builds the same again; `supernet` is what `parts` were rebuilt with."""
    settings = OmegaConf.to_container(parts.cfg, resolve=True)
    assert isinstance(settings, dict)
    plain = {str(k): v for k, v in settings.items()}
    return Spec(plain, parts.digests, str(parts.cache.root.absolute()), supernet)


def evaluation(spec: Spec) -> Evaluation:
    """The search's evaluation; ladders and tokens come from the artifact cache, memory-mapped.

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
    return search_evaluation(parts, [Objective(str(m)) for m in cfg.objectives])
