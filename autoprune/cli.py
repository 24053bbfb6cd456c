"""`autoprune …`: settings as key=value start a search, everything else is a plain command.

Exit codes: 0 done; 2 a user's mistake; 3 stopped but resumable, or a measurement refused; 141 the reader of the output
went away; 1 anything else.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Sequence

from autoprune.commands import cache, kernels, leaderboard, listing, models, runs, study, submit
from autoprune.commands.stopping import outcome
from autoprune.errors import SettingError, nearest

COMMANDS = {
    "demo": models.COMMANDS["demo"],
    **runs.COMMANDS,
    **leaderboard.COMMANDS,
    **models.COMMANDS,
    **study.COMMANDS,
    **listing.COMMANDS,
    **cache.COMMANDS,
    **kernels.COMMANDS,
    **submit.COMMANDS,
}

WIDTH = 98
STDOUT, UNREAD = 1, 141  # what shells report of a process that SIGPIPE ended
HELP = """\
usage: autoprune key=value …      search: find smaller, faster versions of a model
       autoprune -m key=a,b …     search every combination, each in its own folder
       autoprune COMMAND …        one of the commands below; COMMAND --help says more

commands:
{commands}

settings (autoprune --cfg job prints all; autoprune list names the choices):
  model=NAME|PATH|HUB_ID          required
  data=FILE|FOLDER|NAME           text to measure on
  space=[structured]              what may change
  search=auto                     how to search
  objectives='[kl,params]'        what to make small
  constraints='{{decode: 0.6x}}'    bounds: of dense (0.6x) or absolute
  tokens=1e6                      how much to spend
  seed=0  out=DIR  +experiment=demo

example: autoprune model=docs-llama constraints='{{params: 0.6x}}' out=results/first
"""


def help_text() -> str:
    """What --help prints."""
    lines = (
        f"  {_brief(command.usage(name))}\n      {command.summary}" for name, command in COMMANDS.items()
    )
    return HELP.format(commands="\n".join(lines))


def _brief(usage: str) -> str:
    """A usage that fits a line: with many options, without them."""
    if len(usage) <= WIDTH:
        return usage
    name, _, rest = usage.partition(" ")
    plain = re.sub(r"\[--[^]]*] ?", "", rest)
    return f"{name} [options] {plain}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # argparse, after printing a command's --help
        return int(end.code or 0)
    except BaseException as error:
        return UNREAD if isinstance(error, BrokenPipeError) and _unread() else outcome(error)


def _unread() -> bool:
    """Whether nobody reads standard output any more, as after `autoprune … | head`; what is left of it goes nowhere."""
    asked = select.poll()
    asked.register(STDOUT, 0)
    gone = any(events & select.POLLERR for _, events in asked.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return gone


def _dispatch(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        command = COMMANDS[words[0]]
        command.run(command.parser(words[0]).parse_all(words[1:]))
        return 0
    if not words or "-h" in words or "--help" in words:
        print(help_text(), end="")
        return 0
    if words == ["--version"]:
        from autoprune import __version__

        print(__version__)
        return 0
    if "=" not in words[0] and not words[0].startswith(("-", "~")):
        raise SettingError(f"unknown command {words[0]!r}" + nearest(words[0], COMMANDS))
    from autoprune.commands.search import search

    return search(words)
