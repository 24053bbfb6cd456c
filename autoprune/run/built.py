"""Models as they are timed: as their checkpoints will run when they are loaded, on the kernels that pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoprune.run.int8 import in_int8
from autoprune.run.parts import Parts
from autoprune.shape import full_plan
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.progress import Progress
    from autoprune.supernet import Ladders


def as_exported(
    parts: Parts, plan: Plan, progress: Progress | None = None, ladders: Ladders | None = None
) -> Any:
    """The model of a plan as its checkpoint will run when it is loaded: on the kernels that pay."""
    return _fast(parts, parts.adapter, parts.build(plan, ladders), plan, progress)


def as_given(parts: Parts) -> Any | None:
    """The model as it was named, where the dense one is narrower: a new one, that runs as exports do."""
    given = parts.given
    if given is None or not given.wider(parts.adapter.shape):
        return None
    adapter, plan = given.adapter, full_plan(given.adapter.shape)
    model = adapter.install(plan, lambda block, s: adapter.weights(block, s.kind), given.loaded.dtype)
    return _fast(parts, adapter, model, plan, None)


def _fast(parts: Parts, adapter: Any, model: Any, plan: Plan, progress: Progress | None) -> Any:
    """The model on the kernels that pay, changed in place."""
    if model.device.type != "cpu" or not parts.cfg.latency.kernels:
        return model
    from autoprune.export.int8 import rounded_maps
    from autoprune.export.packed import pack_model
    from autoprune.export.running import run_fast

    maps = rounded_maps(model, adapter.layout) if in_int8(parts.cfg) else {}
    packed = {} if maps or plan == plan.unmasked else pack_model(adapter, model, plan)
    said = run_fast(model, getattr(adapter, "layout", None), packed, int(parts.cfg.threads), maps)
    if (packed or maps) and progress is not None:
        progress.say(f"{plan.key}: {said}")
    return model


def changed(model: Any) -> bool:
    """Whether a model runs on kernels of ours."""
    return any(type(m).__module__.startswith("autoprune.kernels") for m in model.modules())
