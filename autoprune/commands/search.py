"""`autoprune key=value …`: Hydra reads the settings, and with `-m` runs every combination of them."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.commands.stopping import describe, outcome, stopped_in
from autoprune.errors import SettingError, StoppedError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

SWITCHES = ("-m", "--multirun", "--resolve")
VALUED = ("--cfg", "--config-dir")  # the value follows a = or is the next word


def search(words: Sequence[str]) -> int:
    """Run what the settings stand for; the exit code is that of the first run that failed."""
    options, settings = split(words)
    sweep = "-m" in options or "--multirun" in options
    from autoprune.settings import quote

    argv = [*options, *(quote(s, sweep) for s in settings)]
    return _Sweep(["autoprune", *options, *settings], sweep).run(argv)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's options (with their values) and the settings; raises SettingError for anything else."""
    options, settings = [], []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in SWITCHES and not equals:
            options.append(word)
        elif name in VALUED:
            options.append(f"{name}={value if equals else next(rest, '')}")
        elif word.startswith("-"):
            raise _unknown(word)
        elif name == "cluster" or name.startswith("cluster."):
            raise SettingError(f"{word} goes with submit: autoprune submit {word} -- {words[0]} …")
        elif equals or word.startswith("~"):
            settings.append(word)
        else:
            raise SettingError(f"cannot read {word!r}; settings are written key=value")
    _check(options)
    return options, settings


def _unknown(word: str) -> SettingError:
    from dataclasses import fields

    from autoprune.config import Config

    allowed = [*(f.name for f in fields(Config)), *SWITCHES, *VALUED]
    return SettingError(
        f"unknown option {word!r}; settings are written key=value" + nearest(word.lstrip("-"), allowed)
    )


def _check(options: list[str]) -> None:
    """What Hydra would answer with a traceback or its own usage."""
    given = {name: value for name, _, value in (option.partition("=") for option in options)}
    if given.get("--cfg", "job") != "job":
        raise SettingError(f"--cfg {given['--cfg']} is unknown; allowed: --cfg job")
    folder = given.get("--config-dir", ".")
    if not (folder and Path(folder).is_dir()):
        raise SettingError(f"--config-dir {folder} is not a folder")
    if "--resolve" in given and "--cfg" not in given:
        raise SettingError("--resolve goes with --cfg job")
    if "--cfg" in given and ("-m" in given or "--multirun" in given):
        raise SettingError("--cfg job prints one configuration; it does not go with -m")


class _Sweep:
    """The runs of one command line; a failure ends its own run only, Ctrl-C ends all."""

    def __init__(self, command: list[str], sweep: bool) -> None:
        self.command = command
        self.sweep = sweep
        self.codes: list[int] = []

    def run(self, argv: list[str]) -> int:
        """Let Hydra call `job` for every combination."""
        with _hydra_environment(argv):
            import hydra

            from autoprune.config import GROUPS, register
            from autoprune.executors.local import one_ray
            from autoprune.settings import explain

            register()
            main = hydra.main(version_base="1.3", config_path=f"pkg://{GROUPS}", config_name="config")
            try:
                with one_ray() if self.sweep else nullcontext():
                    main(self.job)()
            except _Ended:
                return StoppedError.exit_code
            except OSError as error:  # of Hydra's own errors some are, too
                raise error if explain(error) else SettingError(f"out: {describe(error)}") from error
        return next((code for code in self.codes if code), 0)

    def job(self, cfg: DictConfig) -> None:
        """One run. An error must not reach Hydra: it would print its own lines and end the sweep."""
        from hydra.core.hydra_config import HydraConfig

        folder = HydraConfig.get().runtime.output_dir
        try:
            with stopped_in(folder):
                _run(cfg, folder, self._command(folder))
        except Exception as error:
            self.codes.append(outcome(error, Path(folder).name if self.sweep else ""))
            if isinstance(error, StoppedError):
                raise _Ended from error
        finally:
            with suppress(OSError):  # Hydra made the folder; nothing in it means that no run began
                Path(folder).rmdir()

    def _command(self, folder: str) -> str:
        """What runs this run alone."""
        if not self.sweep:
            return shlex.join(self.command)
        from hydra.core.hydra_config import HydraConfig

        options = [word for word in split(self.command[1:])[0] if word not in ("-m", "--multirun")]
        given = [s for s in HydraConfig.get().overrides.task if not s.startswith("out=")]
        settings = [re.sub(r"='([\w./-]+)'$", r"=\1", s) for s in given]  # quotes that nobody would write
        return shlex.join(["autoprune", *options, *settings, f"out={folder}"])


class _Ended(BaseException):
    """Leaves Hydra at once; not an Exception, which Hydra would catch and go on to the next run."""


def _run(cfg: DictConfig, folder: str, command: str) -> None:
    from autoprune.config import validate

    validate(cfg)
    cfg.out = folder
    from autoprune import api

    api.run_config(cfg, command)


@contextmanager
def _hydra_environment(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv and, with HYDRA_FULL_ERROR set, raises instead of printing; both are put back."""
    old_argv, old_flag = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = old_argv
        del os.environ["HYDRA_FULL_ERROR"]
        if old_flag is not None:
            os.environ["HYDRA_FULL_ERROR"] = old_flag
