"""`autoprune submit`: a command line as a job of a cluster, and what becomes of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.commands.parser import Command, Parser
from autoprune.errors import AutopruneError, SettingError, StoppedError

if TYPE_CHECKING:
    from autoprune.executors.submission.jobs import Job

ABOUT_ONE = ("status", "logs", "stop")


class JobError(AutopruneError):
    """A job ended badly; its exit code is ours."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def _declare(parser: Parser) -> None:
    parser.usage = (
        "autoprune submit [--dry-run | --no-wait | --list | --status ID | --logs ID | --stop ID | --down] "
        "cluster=NAME [cluster.key=value ...] -- COMMAND"
    )
    parser.rest = "words"
    parser.add_argument(
        "settings", metavar="cluster=NAME", nargs="+", help="local, onpremise, kuberay; its settings"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    choice.add_argument("--no-wait", action="store_true", help="do not wait for the job's end")
    choice.add_argument("--list", action="store_true", help="the cluster's jobs")
    choice.add_argument("--status", metavar="ID", help="how a job is")
    choice.add_argument("--logs", metavar="ID", help="what a job has printed")
    choice.add_argument("--stop", metavar="ID", help="end a job; resume it by submitting: resume DIR")
    choice.add_argument("--down", action="store_true", help="end the head that cluster=local has started")


def _submit(args: Namespace) -> None:
    cluster = _cluster(args.settings)
    asked = next((name for name in (*ABOUT_ONE, "list", "down") if getattr(args, name)), None)
    if asked is not None:
        if args.words:
            raise SettingError(f"submit: --{asked} takes no command after --")
        return _about(cluster, asked, getattr(args, asked))
    from autoprune.executors.submission.words import folder_of, for_job

    words = for_job(args.words, cluster.results)
    if args.dry_run:
        print(_yaml(cluster.describe(words)), end="")
        return None
    job = cluster.submit(words)
    named = " ".join(args.settings)
    print(f"job {job}: {folder_of(words) or 'submitted'}", flush=True)
    if args.no_wait:
        print(f"autoprune submit {named} --logs {job}   # or --status, --stop")
        return None
    return _wait(cluster, job, named)


def _cluster(settings: Sequence[str]) -> Any:
    """The cluster that `cluster=NAME cluster.key=value …` stand for."""
    from autoprune.config import compose_group

    wrong = next((s for s in settings if not s.startswith(("cluster=", "cluster."))), None)
    if wrong is not None:
        raise SettingError(f"submit: {wrong!r} is not about the cluster; what it is to run stands after --")
    import hydra
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate(compose_group("cluster", settings), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, AutopruneError):
            raise error.__cause__ from error
        raise


def _about(cluster: Any, asked: str, job: str) -> None:
    if asked == "down":
        if not hasattr(cluster, "down"):
            raise SettingError("submit: --down ends what cluster=local has started, and nothing else")
        print("the head has ended" if cluster.down() else "there is no head")
    elif asked == "list":
        for found in cluster.jobs():
            print(f"{found.id}  {found.state:9}  {found.command}")
    elif asked == "status":
        print(_told(cluster.status(job)))
    elif asked == "logs":
        print(cluster.logs(job), end="")
    else:
        cluster.stop(job)
        print(
            _told(cluster.status(job))
            if asked == "stop" and hasattr(cluster, "address")
            else f"{job} is gone"
        )


def _wait(cluster: Any, job: str, named: str) -> None:
    try:
        found = cluster.follow(job)
    except KeyboardInterrupt:
        raise StoppedError(f"job {job} goes on; end it with: autoprune submit {named} --stop {job}") from None
    if found.state != "SUCCEEDED":
        raise JobError(_told(found), found.code if found.code is not None and found.code > 0 else 1)


def _told(job: Job) -> str:
    code = "" if job.code is None else f", exit code {job.code}"
    return f"job {job.id} is {job.state}{code}" + (
        f": {job.message}" if job.message and job.state == "FAILED" else ""
    )


def _yaml(plain: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(plain))


COMMANDS = {"submit": Command("run a command line as a job of a Ray cluster", _declare, _submit)}
