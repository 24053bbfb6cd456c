"""An actor that has a node for itself, to measure latencies there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from autoprune.errors import SettingError, StoppedError
from autoprune.executors.base import Spec
from autoprune.executors.cluster import Cluster
from autoprune.executors.offers import whole_node
from autoprune.executors.shipping import listed, packed
from autoprune.executors.worker import Lacks, Timer
from autoprune.space import Plan

WAITING = 30.0  # seconds without an answer after which a user is told


class Timing:
    """A context: inside it, the first node with these `resources` does nothing but what is asked here."""

    def __init__(
        self,
        spec: Spec,
        address: str,
        resources: Mapping[str, float],
        artifacts: str,
        say: Callable[[str], None],
    ) -> None:
        self._spec, self._address, self._resources = spec, address, resources
        self._artifacts, self._say = artifacts, say

    def __enter__(self) -> Timing:
        import ray

        threads = int(self._spec.settings["threads"])
        self._cluster = Cluster(0, threads, self._address, say=self._say)
        try:
            self._cluster.workers()
            demand = whole_node(self._resources, ray.nodes(), self._cluster.where)
            self._timer = self._cluster.hire(Timer, demand)
            self._open()
        except BaseException:
            self._cluster.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.stop()

    def table(self) -> str:
        """The latency table as JSON."""
        return str(self._answer(self._timer.table.remote()))

    def models(self, plans: Mapping[str, Plan], dense: str, stock: bool) -> tuple[dict[str, Any], str]:
        """End-to-end times of plans by name, and the device."""
        found: tuple[dict[str, Any], str] = self._answer(self._timer.models.remote(dict(plans), dense, stock))
        return found

    def _open(self) -> None:
        files = listed(self._spec)
        answer = None
        if self._artifacts != "ship":
            answer = self._answer(self._timer.open.remote(self._spec, files, None))
        if isinstance(answer, Lacks) and self._artifacts == "shared":
            raise SettingError(
                f"executor.artifacts=shared: node {answer.node} does not see {answer.file}; allowed: auto, ship"
            )
        if answer is None or isinstance(answer, Lacks):
            parcel = packed(files, self._cluster.put)
            self._answer(self._timer.open.remote(self._spec, None, parcel))

    def _answer(self, reference: Any) -> Any:
        import ray
        from ray import exceptions

        if not ray.wait([reference], timeout=WAITING)[0]:
            self._say("the node that latency.on names has not answered yet: is it busy with something else?")
        try:
            return ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise StoppedError(f"latency.on: the node was lost while it measured ({reason})") from error
