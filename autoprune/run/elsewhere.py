"""`latency.on`: latencies measured on a node of the cluster that does nothing else meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoprune.errors import SettingError
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.executors.timing import Timing
    from autoprune.hardware.endtoend import Measured
    from autoprune.hardware.table import LatencyTable
    from autoprune.progress import Progress
    from autoprune.run.parts import Parts


def wanted(parts: Parts) -> bool:
    """Whether the settings name a node; never so in the node's own process, whose executor is none."""
    return bool(getattr(parts.cfg.latency, "on", None))


def note(parts: Parts) -> str:
    """A line for the report."""
    name = parts.cfg.latency.on
    return (
        f"The front was timed on the cluster's node with {name!r}, whose fingerprint stands in latency.json."
    )


def table(parts: Parts, progress: Progress) -> LatencyTable:
    """The node's latency table of this model."""
    from autoprune.hardware.table import LatencyTable

    with progress.stage("measuring latencies on the cluster"), _timing(parts, progress) as timing:
        return LatencyTable.from_json(timing.table())


def measured(
    parts: Parts, plans: Mapping[str, Plan], dense: str, progress: Progress, stage: str, stock: bool
) -> dict[str, Measured]:
    """Plans end to end on the node; the line that says which device it is goes to `progress`."""
    with progress.stage(f"{stage} on the cluster"), _timing(parts, progress) as timing:
        found, device = timing.models(plans, dense, stock)
    progress.say(f"timed on {device}")
    return found


def _timing(parts: Parts, progress: Progress) -> Timing:
    from autoprune.executors.timing import Timing
    from autoprune.run.remote import spec_of

    executor = parts.cfg.executor
    if executor.get("address") is None:
        raise SettingError(
            "latency.on names a node of a cluster: it needs executor=ray with executor.address=auto or HOST:PORT"
        )
    spec = spec_of(parts)
    spec.settings["latency"]["on"] = None  # the node itself measures
    resources = {str(parts.cfg.latency.on): 1.0}
    return Timing(spec, str(executor.address), resources, str(executor.artifacts), progress.say)
