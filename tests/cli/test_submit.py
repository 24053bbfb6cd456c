"""`autoprune submit` without a cluster: what would be submitted, and mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from autoprune import __version__
from autoprune.executors.submission.job import main as run_job

pytestmark = pytest.mark.ray
KUBERAY = ("cluster=kuberay", "cluster.image=repo/image:1", "cluster.claim=shared")
ENTRY = f"-m autoprune.executors.submission.job {__version__} "
POD: Mapping[str, Any] = {
    "spec": {
        "containers": [
            {
                "name": str,
                "image": str,
                "resources": {"limits": dict, "requests": dict},
                "volumeMounts": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    }
}
# of KubeRay's reference of ray.io/v1: the fields that we set, and their types
RAYJOB: Mapping[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": dict},
    "spec": {
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "activeDeadlineSeconds": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "headGroupSpec": {"rayStartParams": dict, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), int),
                    "rayStartParams": dict,
                    "template": POD,
                }
            ],
        },
    },
}


@pytest.fixture(autouse=True)
def loaded() -> None:
    """Ray sets environment variables when it is first imported."""
    import ray.job_submission  # noqa: F401


def check(found: Any, wanted: Any, at: str = "") -> None:
    if isinstance(wanted, Mapping):
        assert isinstance(found, dict) and set(found) <= set(wanted), (at, set(found) - set(wanted))
        for key, value in found.items():
            check(value, wanted[key], f"{at}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list) and found, at
        for value in found:
            check(value, wanted[0], f"{at}[]")
    else:
        assert type(found) is wanted, (at, found)


def dry(run: Callable[..., Any], *words: str) -> dict[str, Any]:
    done = run("submit", "--dry-run", *words)
    assert done.code == 0, done.err
    found: dict[str, Any] = yaml.safe_load(done.out)
    return found


def test_a_job_s_results_are_absolute_and_its_workers_the_cluster_s(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    found = dry(run, "cluster=local", "--", "model=m", "executor=ray", "out=here")
    assert found["entrypoint"].endswith(
        f"{ENTRY}model=m executor=ray out={tmp_path}/here executor.address=auto"
    )
    assert found["runtime_env"]["working_dir"] == str(tmp_path)
    assert "results" in found["runtime_env"]["excludes"]


def test_what_the_user_says_of_workers_and_results_stays(run: Callable[..., Any]) -> None:
    given = ["model=m", "executor=ray", "executor.address=h:1", "out=/shared/x"]
    assert dry(run, "cluster=local", "--", *given)["entrypoint"].endswith(" ".join(given))


def test_a_run_without_a_folder_gets_one_that_is_known(run: Callable[..., Any], tmp_path: Path) -> None:
    words = dry(run, "cluster=local", "--", "-m", "model=m", "seed=0,1")["entrypoint"].split()
    assert words[-1].startswith(f"out={tmp_path}/results/2") and "-m" in words


def test_a_shared_folder_holds_the_results(run: Callable[..., Any]) -> None:
    words = ["cluster=onpremise", "cluster.address=http://h:8265", "cluster.results=/shared"]
    assert "out=/shared/a" in dry(run, *words, "--", "model=m", "out=a")["entrypoint"]
    assert dry(run, *words, "--", "resume", "runs/a")["entrypoint"].endswith("resume /shared/runs/a")


def test_environment_and_packages_reach_the_job(run: Callable[..., Any]) -> None:
    given = ["cluster.env={AUTOPRUNE_CACHE: /shared/cache}", "cluster.pip=[lm_eval]"]
    found = dry(run, "cluster=onpremise", *given, "--", "model=m")["runtime_env"]
    assert (found["env_vars"], found["pip"]) == ({"AUTOPRUNE_CACHE": "/shared/cache"}, ["lm_eval"])


def test_the_rayjob_has_documented_fields_only(run: Callable[..., Any]) -> None:
    given = ["cluster.gpus=1", "cluster.workers=8", "cluster.deadline=3600"]
    found = dry(run, *KUBERAY, *given, "--", "model=m", "executor=ray", "out=a")
    check(found, RAYJOB)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    spec = found["spec"]
    assert spec["activeDeadlineSeconds"] == 3600
    assert "out=/mnt/autoprune/a executor.address=auto" in spec["entrypoint"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["maxReplicas"] == 8
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0", "evaluations stay with the workers"
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["AUTOPRUNE_CACHE"] == "/mnt/autoprune/cache"


def test_a_run_is_told_that_clusters_go_with_submit(run: Callable[..., Any]) -> None:
    done = run("model=m", "cluster=local")
    assert (done.code, done.err) == (
        2,
        "autoprune: cluster=local goes with submit: autoprune submit cluster=local -- model=m …\n",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster=kubray", "--", "model=m"], "cluster=kubray is unknown; did you mean 'kuberay'?"),
        (["cluster=local"], "submit: nothing to run; write it after --"),
        (["cluster.cpus=2", "--", "model=m"], "cluster=NAME is required"),
        (["cluster=local", "model=m"], "submit: 'model=m' is not about the cluster"),
        (["cluster=local", "cluster.cpu=2", "--", "model=m"], "did you mean 'cpus'?"),
        (["cluster=local", "cluster.cpus=0", "--", "model=m"], "cluster.cpus=0 must be at least 1"),
        (["cluster=local", "cluster.cpus=two", "--", "model=m"], "cluster.cpus=two must be a whole number"),
        (["cluster=local", "--list", "--", "model=m"], "submit: --list takes no command"),
        (["cluster=onpremise", "--down"], "submit: --down ends what cluster=local has started"),
        (["cluster=onpremise", "--", "model=m"], "cluster.address=http://HOST:8265 is required"),
        (
            ["cluster=onpremise", "cluster.address=http://127.0.0.1:1", "--", "model=m"],
            "no Ray answers there",
        ),
        (
            ["cluster=onpremise", "cluster.working_dir=none", "--", "model=m"],
            "cluster.working_dir=none is not",
        ),
        (
            ["cluster=onpremise", "cluster.token_file=none", "--", "model=m"],
            "cluster.token_file=none is not a",
        ),
        (["cluster=kuberay", "--dry-run", "--", "model=m"], "cluster.image=… is required"),
        (
            [*KUBERAY, "cluster.memory=lots", "--", "model=m"],
            "cluster.memory=lots is not a Kubernetes quantity",
        ),
        ([*KUBERAY, "cluster.workers=0", "--", "model=m"], "cluster.workers=0 must be at least 1"),
        (["cluster=local", "--statu", "x"], "unknown option '--statu'; did you mean '--status'?"),
    ],
)
def test_mistakes(run: Callable[..., Any], words: list[str], said: str) -> None:
    done = run("submit", *words)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1, done.err


def test_kubectl_is_asked_for(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    done = run("submit", *KUBERAY, "--", "model=m")
    assert (done.code, "cluster=kuberay needs kubectl" in done.err) == (2, True)


def test_a_folder_over_ray_s_limit_names_its_largest_files(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env import packaging

    monkeypatch.setattr(packaging, "GCS_STORAGE_MAX_SIZE", 5 << 20)
    for name, size in (("weights.bin", 4), ("more.bin", 2), ("results/old.bin", 9), ("ignored.bin", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size << 20))
    (tmp_path / ".gitignore").write_text("ignored.bin\n")
    done = run("submit", "cluster=onpremise", "cluster.address=http://127.0.0.1:1", "--", "model=m")
    assert done.code == 2
    assert f"{tmp_path} holds 6 MiB, and Ray takes less than 5 MiB" in done.err
    assert "the largest: weights.bin (4 MiB), more.bin (2 MiB), .gitignore" in done.err
    assert (
        run(
            "submit", "--dry-run", "cluster=local", "cluster.excludes=[weights.bin,results]", "--", "model=m"
        ).code
        == 0
    )


def test_a_job_of_another_version_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(["0.0.1", "--version"]) == 2
    assert "submitted by autoprune 0.0.1, and the cluster has" in capsys.readouterr().err
    assert run_job([__version__, "--version"]) == 0


def test_what_a_failed_job_has_printed_is_not_said_again() -> None:
    from autoprune.executors.submission.jobs import _job

    message = "Job entrypoint command failed with exit code 2, last available logs (truncated):\nRunning\nautoprune: no"
    found = SimpleNamespace(
        status="FAILED", entrypoint="python x", message=message, driver_exit_code=2, submission_id="a"
    )
    assert _job(found).message == "Job entrypoint command failed with exit code 2"
