"""`autoprune leaderboard`: one table over many runs, printed and written."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from autoprune.commands.parser import Command, Parser
from autoprune.errors import SettingError


def _declare(parser: Parser) -> None:
    parser.add_argument("dirs", metavar="DIR", nargs="+", help="run folders, or folders that hold some")
    parser.add_argument("--csv", metavar="FILE", help="write all rows and columns there")
    parser.add_argument("--md", metavar="FILE", help="write all tables there")
    parser.add_argument("--html", metavar="FILE", help="write a page with a picture of all fronts there")
    parser.add_argument("--by", metavar="COLUMN", help="sort by this column of the csv, smallest first")
    parser.add_argument("--reverse", action="store_true", help="sort the other way round")
    parser.add_argument(
        "--where", metavar="COND", action="append", default=[], help="e.g. 'params_ratio<=0.6'; repeatable"
    )
    parser.add_argument(
        "--cost", metavar="COLUMN", default="params_ratio", help="what fronts are compared on (%(default)s)"
    )
    parser.add_argument("--all", action="store_true", help="print dominated rows too")


def _leaderboard(args: Namespace) -> None:
    from autoprune.report.board import groups as board
    from autoprune.report.board.table import read_board
    from autoprune.report.board.text import markdown

    found = read_board(args.dirs)
    wanted = board.Wanted(tuple(args.where), args.by, args.reverse, args.cost)
    rows, groups = board.prepare(found, wanted)
    if args.csv:
        from autoprune.report.leaderboard import write_csv

        _written("--csv", args.csv, lambda path: write_csv(rows, path))
    if args.md:
        from autoprune.report.files import write_text

        whole = markdown(groups, found.unread, args.cost, everything=True)
        _written("--md", args.md, lambda path: write_text(path, whole))
    if args.html:
        from autoprune.report.board.page import render
        from autoprune.report.files import write_text

        at = Path(args.html).absolute().parent
        page = render(groups, found.runs, found.unread, args.cost, at, _command(args))
        _written("--html", args.html, lambda path: write_text(path, page))
    print(markdown(groups, found.unread, args.cost, args.all), end="")


def _written(option: str, path: str, write: Callable[[Path], object]) -> None:
    """Write and say so; raises SettingError when it cannot be done."""
    if Path(path).is_dir():
        raise SettingError(f"{option} {path} cannot be written: it is a folder")
    try:
        write(Path(path))
    except OSError as error:
        raise SettingError(f"{option} {path} cannot be written: {error.strerror or error}") from error
    print(f"wrote {path}", file=sys.stderr)


def _command(args: Namespace) -> str:
    """The command line that makes the page again."""
    words = ["autoprune", "leaderboard", *args.dirs, "--html", args.html]
    for condition in args.where:
        words += ["--where", condition]
    words += ["--by", args.by] if args.by else []
    words += ["--reverse"] if args.reverse else []
    words += ["--cost", args.cost] if args.cost != "params_ratio" else []
    return shlex.join(words)


COMMANDS = {"leaderboard": Command("one table over many runs", _declare, _leaderboard)}
