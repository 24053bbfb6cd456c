"""`autoprune kernels`: compile the kernels ahead, or say what runs here."""

from __future__ import annotations

from argparse import Namespace

from autoprune.commands.parser import Command, Parser
from autoprune.errors import SettingError, nearest

ACTIONS = ("build", "show")


def _declare(parser: Parser) -> None:
    parser.add_argument("action", metavar="build|show", nargs="?", default="build", help="(%(default)s)")


def _kernels(args: Namespace) -> None:
    if args.action not in ACTIONS:
        raise SettingError(f"kernels: unknown action {args.action!r}" + nearest(args.action, ACTIONS))
    from autoprune.kernels import native
    from autoprune.kernels.build import build

    if args.action == "build":
        print(build())
    print(f"instructions: {native.instructions()}")


COMMANDS = {"kernels": Command("compile the kernels that run masked matrices packed", _declare, _kernels)}
