"""`autoprune study`: is what a search looks at worth looking at?"""

from __future__ import annotations

from argparse import Namespace

from autoprune.commands.parser import Command, Parser


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "what", choices=["oracle"], help="oracle: does fitness rank plans as it would after recovery?"
    )
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a path or a hub id")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", default=[], help="such as recovery.learning_rate=1e-3"
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="tables; the same command goes on there")
    parser.add_argument("--data", metavar="DATA", default="auto", help="text (%(default)s)")
    parser.add_argument("--plans", metavar="N", type=int, default=16, help="random plans (%(default)s)")
    parser.add_argument(
        "--ratio", metavar="0.5x", default="0.5x", help="their size in block parameters (%(default)s)"
    )
    parser.add_argument("--steps", metavar="N", type=int, default=100, help="of each recovery (%(default)s)")
    parser.add_argument("--windows", metavar="N", type=int, default=8, help="of fitness (%(default)s)")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of the plans and the recovery (%(default)s)"
    )


def _study(args: Namespace) -> None:
    from autoprune import api

    words = {
        name: getattr(args, name) for name in ("to", "data", "plans", "ratio", "steps", "windows", "seed")
    }
    api.study_oracle(args.model, **words, settings=args.settings)


COMMANDS = {"study": Command("is what a search looks at worth looking at?", _declare, _study)}
