"""A Kubernetes cluster with the KubeRay operator: a job brings a Ray cluster of its own, which goes with it."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.errors import SettingError
from autoprune.executors.submission.jobs import ENDED, Job
from autoprune.executors.submission.words import entry

MOUNTED = "/mnt/autoprune"
LABEL = "app.kubernetes.io/managed-by=autoprune"
QUANTITY = re.compile(r"[0-9.]+(m|[KMGTP]i?)?")


class KubeRay:
    """RayJobs of KubeRay (ray.io/v1); the image holds autoprune and Ray, a volume the model, data and results.

    image: of head and workers; claim: a PersistentVolumeClaim that all pods may write, mounted at /mnt/autoprune, where
    a relative out= and the artifact cache are; namespace: of the job; workers: pods beside the head; cpus: of a worker;
    memory: of a worker; gpus: of a worker; head_cpus: of the head, which runs the search itself and no evaluation;
    head_memory: of the head; keep: seconds that a finished job's cluster stays; deadline: seconds until a job is
    ended, null for none; env: further environment variables of the job; python: the image's.
    """

    results = MOUNTED

    def __init__(
        self,
        image: str | None = None,
        claim: str | None = None,
        namespace: str = "default",
        workers: int = 2,
        cpus: int = 4,
        memory: str = "16Gi",
        gpus: int = 0,
        head_cpus: int = 2,
        head_memory: str = "8Gi",
        keep: int = 60,
        deadline: int | None = None,
        env: Mapping[str, str] | None = None,
        python: str = "python3",
    ) -> None:
        for name, value, least in (
            ("workers", workers, 1),
            ("cpus", cpus, 1),
            ("gpus", gpus, 0),
            ("keep", keep, 0),
        ):
            if value < least:
                raise SettingError(f"cluster.{name}={value} must be at least {least}")
        for name, text in (("memory", memory), ("head_memory", head_memory)):
            if not QUANTITY.fullmatch(text):
                raise SettingError(f"cluster.{name}={text} is not a Kubernetes quantity, such as 16Gi")
        self._image, self._claim, self._namespace = image, claim, namespace
        self._workers, self._worker = workers, _limits(cpus, memory, gpus)
        self._head, self._keep, self._deadline = _limits(head_cpus, head_memory, 0), keep, deadline
        self._env = {"AUTOPRUNE_CACHE": f"{MOUNTED}/cache"} | {str(k): str(v) for k, v in (env or {}).items()}
        self._python = python

    def describe(self, words: Sequence[str], name: str = "autoprune-NAME") -> dict[str, Any]:
        """The RayJob's manifest."""
        for setting, value in (("image", self._image), ("claim", self._claim)):
            if not value:
                raise SettingError(f"cluster.{setting}=… is required; see docs/cluster.md")
        spec: dict[str, Any] = {
            "entrypoint": entry(self._python, words),
            "runtimeEnvYAML": json.dumps({"env_vars": self._env}),  # JSON is YAML
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": self._keep,
            "rayClusterSpec": {
                "rayVersion": _ray(),
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": self._pod("ray-head", self._head),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), self._workers),
                        "rayStartParams": {},
                        "template": self._pod("ray-worker", self._worker),
                    }
                ],
            },
        }
        spec |= {"activeDeadlineSeconds": self._deadline} if self._deadline is not None else {}
        label, _, value = LABEL.partition("=")
        metadata = {"name": name, "namespace": self._namespace, "labels": {label: value}}
        return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}

    def submit(self, words: Sequence[str]) -> str:
        """Apply a manifest; gives its name."""
        name = f"autoprune-{secrets.token_hex(4)}"
        self._kubectl("apply", "-f", "-", given=json.dumps(self.describe(words, name)))
        return name

    def jobs(self) -> list[Job]:
        """All RayJobs of ours, oldest first."""
        text = self._kubectl(
            "get", "rayjobs", "-l", LABEL, "-o", "json", "--sort-by=.metadata.creationTimestamp"
        )
        return [_job(item) for item in json.loads(text)["items"]]

    def status(self, job: str) -> Job:
        """One job."""
        return _job(json.loads(self._kubectl("get", "rayjob", job, "-o", "json")))

    def logs(self, job: str) -> str:
        """What the submitter's pod has printed."""
        return self._kubectl("logs", f"job/{job}", "--tail=-1")

    def stop(self, job: str) -> None:
        """Delete the job and its cluster; what its ledger holds is kept on the volume."""
        self._kubectl("delete", "rayjob", job, "--wait=false")

    def follow(self, job: str) -> Job:
        """Print what a job prints until it has ended."""
        import time

        while (found := self.status(job)).state in ("", "PENDING"):
            time.sleep(2)
        if found.state not in ENDED:
            self._kubectl("logs", "-f", f"job/{job}", shown=True)
        while (found := self.status(job)).state not in ENDED:
            time.sleep(2)
        return found

    def _pod(self, name: str, limits: Mapping[str, str]) -> dict[str, Any]:
        """A pod template of one container."""
        container = {
            "name": name,
            "image": self._image,
            "resources": {"limits": dict(limits), "requests": dict(limits)},
            "volumeMounts": [{"name": "autoprune", "mountPath": MOUNTED}],
        }
        volume = {"name": "autoprune", "persistentVolumeClaim": {"claimName": self._claim}}
        return {"spec": {"containers": [container], "volumes": [volume]}}

    def _kubectl(self, *words: str, given: str | None = None, shown: bool = False) -> str:
        if shutil.which("kubectl") is None:
            raise SettingError(
                "cluster=kuberay needs kubectl; or print the manifest: autoprune submit --dry-run …"
            )
        command = ["kubectl", "--namespace", self._namespace, *words]
        done = subprocess.run(command, input=given, stdout=None if shown else -1, stderr=-1, text=True)
        if done.returncode:
            said = [s.strip() for s in (done.stderr or "").splitlines() if s.strip()]
            raise SettingError(f"kubectl {words[0]}: {(said or ['failed'])[-1]}")
        return done.stdout or ""


def _ray() -> str:
    """The version of Ray, which must be the image's."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ray")
    except PackageNotFoundError as error:
        raise SettingError("cluster=kuberay names the version of Ray: pip install autoprune[ray]") from error


def _limits(cpus: int, memory: str, gpus: int) -> dict[str, str]:
    return {"cpu": str(cpus), "memory": memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})


def _job(item: Mapping[str, Any]) -> Job:
    told = item.get("status", {})
    words = item["spec"]["entrypoint"].partition("submission.job ")[2].split(" ", 1)
    state = str(told.get("jobStatus", ""))
    if told.get("jobDeploymentStatus") == "Failed":
        state = "FAILED"
    return Job(item["metadata"]["name"], state, words[-1], None, str(told.get("message", "")))
