"""What a plain command is: its options and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from autoprune.errors import SettingError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are SettingErrors of one line.

    With `rest` set, the words after -- are not read but kept under that name.
    """

    rest: str | None = None

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise SettingError(f"{self._command}: {message}; see {self.prog} --help")

    def parse_all(self, words: Sequence[str]) -> argparse.Namespace:
        """Like `parse_args`, but an unknown option is the first thing said, with the nearest one."""
        if self.rest is not None:
            at = list(words).index("--") if "--" in words else len(words)
            name, self.rest = self.rest, None
            found = self.parse_all(words[:at])
            setattr(found, name, list(words[at + 1 :]))
            return found
        if not any(action.nargs == argparse.REMAINDER for action in self._actions):
            for word in words:
                if word.startswith("-") and word.partition("=")[0] not in self._option_string_actions:
                    raise SettingError(
                        f"{self._command}: unknown option {word!r}" + nearest(word, self.options())
                    )
        if any(
            action.dest == "settings" for action in self._actions
        ):  # wherever among the options they stand
            return self.parse_intermixed_args(words)
        return self.parse_args(words)

    @property
    def _command(self) -> str:
        return self.prog.removeprefix("autoprune ")

    def options(self) -> list[str]:
        """All option names."""
        return sorted(self._option_string_actions)


@dataclass(frozen=True)
class Command:
    """One word of the command line."""

    summary: str
    declare: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]

    def parser(self, name: str) -> Parser:
        """Its parser."""
        parser = Parser(prog=f"autoprune {name}", description=self.summary, allow_abbrev=False)
        self.declare(parser)
        return parser

    def usage(self, name: str) -> str:
        """Its usage in one line, without the program's name."""
        words = self.parser(name).format_usage().removeprefix("usage: autoprune ").split()
        return " ".join(words).replace(" [-h]", "")
