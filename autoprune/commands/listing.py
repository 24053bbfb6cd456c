"""`autoprune list`: what can be named, and the runs of a folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from autoprune.commands.parser import Command, Parser
from autoprune.errors import SettingError, nearest

RUNS = "runs"


def _declare(parser: Parser) -> None:
    parser.add_argument("group", metavar="GROUP", nargs="?", help="only these, e.g. searches; or runs")
    parser.add_argument("dir", metavar="DIR", nargs="?", help="of runs: where they are (results)")


def _list(args: Namespace) -> None:
    if args.group in (RUNS, "run"):
        from autoprune.commands.run_list import show

        show(args.dir or "results")
        return
    if args.dir:
        raise SettingError(f"list: a folder goes with runs: autoprune list runs {args.dir}")
    from autoprune import catalogue

    known = catalogue.groups()
    chosen = known if args.group is None else [_group(args.group, known)]
    for number, group in enumerate(chosen):
        print(f"{'' if not number else chr(10)}{group}: {catalogue.written(group)}")
        for part in catalogue.parts(group):
            print(f"  {part.name:<12} {part.summary}".rstrip())
            for setting in part.settings:
                value = f"{setting.name}={setting.default}"
                print(f"  {'':<12} {value:<36} {setting.meaning}".rstrip())


def _group(word: str, known: Sequence[str]) -> str:
    """A group by its name or plural: searches, searchers, recoveries."""
    stems = [word, word[:-1], word[:-2], word[:-3], word[:-3] + "y"]
    hit = next((stem for stem in stems if stem in known), None)
    if hit is None:
        raise SettingError(f"list: unknown group {word!r}" + nearest(word, [*known, RUNS]))
    return hit


COMMANDS = {"list": Command("say what can be named, with all settings; or list runs", _declare, _list)}
