"""A running Ray cluster that takes jobs over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoprune.errors import SettingError
from autoprune.executors.submission.words import entry

EXCLUDES = (".git", ".venv", "results", "build", "__pycache__")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOGS = ", last available logs"  # what Ray's message of a failed job goes on with: they were printed already
NAMED = 3  # files that are named when the folder is too large


@dataclass(frozen=True)
class Job:
    """A job as its cluster tells of it; `code` is its exit code once it has one."""

    id: str
    state: str
    command: str
    code: int | None = None
    message: str = ""


class RayJobs:
    """Jobs of a Ray cluster that runs already.

    address: of the cluster's dashboard, http://HOST:8265; working_dir: folder whose copy the job runs in; excludes:
    what of it stays here, as in .gitignore; pip: packages that the job needs beside the cluster's own; env:
    environment variables of the job, such as AUTOPRUNE_CACHE; results: shared folder that a relative out= is in, null
    for the same path as here; python: the cluster's; token_file: the cluster's token, null for what RAY_AUTH_MODE and
    RAY_AUTH_TOKEN_PATH say.
    """

    def __init__(
        self,
        address: str | None = None,
        working_dir: str = ".",
        excludes: Sequence[str] = EXCLUDES,
        pip: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        results: str | None = None,
        python: str = "python3",
        token_file: str | None = None,
    ) -> None:
        self._address, self.results, self._python = address, results, python
        self._folder = Path(working_dir).absolute()
        if not self._folder.is_dir():
            raise SettingError(f"cluster.working_dir={working_dir} is not a folder")
        self._excludes, self._pip = list(excludes), list(pip)
        self._env = {str(k): str(v) for k, v in (env or {}).items()}
        if token_file is not None and not Path(token_file).is_file():
            raise SettingError(f"cluster.token_file={token_file} is not a file")
        self._token_file = token_file
        self._client: Any = None

    def address(self) -> str:
        """Where jobs are sent."""
        if not self._address:
            raise SettingError("cluster.address=http://HOST:8265 is required: the address of the dashboard")
        return self._address

    def describe(self, words: Sequence[str]) -> dict[str, Any]:
        """What would be submitted, as plain data; raises SettingError where that would."""
        self._check_size()
        return {
            "address": self._address,
            "entrypoint": entry(self._python, words),
            "runtime_env": self._runtime(),
        }

    def submit(self, words: Sequence[str]) -> str:
        """Send a job off; gives its id."""
        self._check_size()
        client = self._connected()
        with self._told():
            return str(client.submit_job(entrypoint=entry(self._python, words), runtime_env=self._runtime()))

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        client = self._connected()
        with self._told():
            found = [d for d in client.list_jobs() if d.submission_id]
        return [_job(d) for d in sorted(found, key=lambda d: d.start_time or 0)]

    def status(self, job: str) -> Job:
        """One job."""
        client = self._connected()
        with self._told(job):
            return _job(client.get_job_info(job))

    def logs(self, job: str) -> str:
        """What a job has printed so far."""
        client = self._connected()
        with self._told(job):
            return str(client.get_job_logs(job))

    def stop(self, job: str) -> None:
        """End a job at once; what its ledger holds is kept."""
        client = self._connected()
        with self._told(job):
            client.stop_job(job)

    def follow(self, job: str) -> Job:
        """Print what a job prints until it has ended."""
        client = self._connected()
        with self._told(job):
            asyncio.run(_print_all(client.tail_job_logs(job)))
        while (found := self.status(job)).state not in ENDED:
            time.sleep(0.2)
        return found

    def _runtime(self) -> dict[str, Any]:
        """Ray's runtime environment of a job."""
        found: dict[str, Any] = {"working_dir": str(self._folder), "excludes": self._excludes}
        found |= {"env_vars": self._env} if self._env else {}
        return found | ({"pip": self._pip} if self._pip else {})

    def _connected(self) -> Any:
        if self._client is None:
            check_installed()
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray").setLevel(logging.WARNING)
            address = self.address()
            with self._told():
                client = JobSubmissionClient(address, headers=self._headers())
                self._check_version(client)
            self._client = client
        return self._client

    def _headers(self) -> dict[str, str]:
        """The token, where a file has it; else Ray finds it in its own environment variables."""
        if self._token_file is None:
            return {}
        return {"Authorization": f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"}

    def _check_version(self, client: Any) -> None:
        import ray

        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
        if theirs != ray.__version__:
            raise SettingError(
                f"cluster.address={self.address()} runs Ray {theirs}, here it is {ray.__version__}; "
                f"pip install 'ray[default]=={theirs}'"
            )

    def _check_size(self) -> None:
        """Refuse a working folder over Ray's limit, by the files that Ray would pack."""
        check_installed()
        from ray._private.runtime_env import packaging

        sizes: dict[Path, int] = {}

        def note(path: Path) -> None:
            if path.is_file():
                sizes[path.relative_to(self._folder)] = path.stat().st_size

        excluded = packaging._get_excludes(self._folder, self._excludes)
        packaging._dir_travel(self._folder, [excluded], note, include_gitignore=True)
        whole, limit = sum(sizes.values()), packaging.GCS_STORAGE_MAX_SIZE
        if whole >= limit:
            largest = sorted(sizes, key=lambda p: -sizes[p])[:NAMED]
            named = ", ".join(f"{p} ({_mib(sizes[p])})" for p in largest)
            raise SettingError(
                f"cluster.working_dir={self._folder} holds {_mib(whole)}, and Ray takes less than {_mib(limit)}; "
                f"the largest: {named}; name what may stay here in cluster.excludes"
            )

    @contextmanager
    def _told(self, job: str = "") -> Iterator[None]:
        """Ray's and the network's complaints in one line."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        where = f"cluster.address={self._address}"
        try:
            yield
        except AuthenticationError as error:
            raise SettingError(
                f"{where}: the cluster does not take this token ({_line(error)}); name its file in cluster.token_file"
            ) from error
        except (ConnectionError, RequestException) as error:
            raise SettingError(f"{where}: no Ray answers there ({_line(error)})") from error
        except (RuntimeError, ValueError) as error:
            if job and ("404" in str(error) or "not exist" in str(error)):
                raise SettingError(
                    f"{where} has no job {job}; autoprune submit … --list names all"
                ) from error
            raise SettingError(f"{where}: {_line(error)}") from error


def check_installed() -> None:
    """Raise SettingError without Ray and what its dashboard needs."""
    if find_spec("ray") is None or find_spec("aiohttp_cors") is None:
        raise SettingError("submit needs Ray with its dashboard: pip install autoprune[cluster]")


async def _print_all(lines: Any) -> None:
    async for text in lines:
        print(text, end="", flush=True)


def _job(details: Any) -> Job:
    state = str(getattr(details.status, "value", details.status))
    words = details.entrypoint.partition("submission.job ")[2].split(" ", 1)
    message = " ".join((details.message or "").split()).partition(LOGS)[0]
    return Job(details.submission_id, state, words[-1], details.driver_exit_code, message)


def _line(error: Exception) -> str:
    found = next((s.strip() for s in str(error).splitlines() if s.strip()), type(error).__name__)
    return found[:200]


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
