"""`autoprune study`: is what a search looks at worth looking at?"""

from __future__ import annotations

from argparse import Namespace

from autoprune.commands.parser import Command, Parser


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "what",
        choices=["oracle", "scratch"],
        help="oracle: does fitness rank plans as it would after recovery? "
        "scratch: is a pruned model worth more than its architecture?",
    )
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a path or a hub id")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", default=[], help="such as recovery.learning_rate=1e-3"
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="tables; the same command goes on there")
    parser.add_argument("--data", metavar="DATA", default="auto", help="text (%(default)s)")
    parser.add_argument(
        "--plans", metavar="N", type=int, default=16, help="oracle: random plans (%(default)s)"
    )
    parser.add_argument(
        "--ratio", metavar="0.5x", default="0.5x", help="oracle: their size in block parameters (%(default)s)"
    )
    parser.add_argument("--steps", metavar="N", type=int, default=100, help="of each training (%(default)s)")
    parser.add_argument(
        "--windows", metavar="N", type=int, default=8, help="oracle: of fitness (%(default)s)"
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of the plans and the training (%(default)s)"
    )
    parser.add_argument(
        "--plan",
        metavar="PLAN",
        default="uniform@0.5",
        help="scratch: a checkpoint, a plan file or %(default)s",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=1, help="scratch: random starts (%(default)s)"
    )
    parser.add_argument(
        "--search-tokens", metavar="N", type=float, default=0.0, help="scratch: what the plan's search took"
    )


def _study(args: Namespace) -> None:
    from autoprune import api

    study, own = STUDIES[args.what]
    words = {name: getattr(args, name) for name in ("to", "data", "steps", "seed", *own)}
    getattr(api, study)(args.model, **words, settings=args.settings)


STUDIES = {
    "oracle": ("study_oracle", ("plans", "ratio", "windows")),
    "scratch": ("study_scratch", ("plan", "seeds", "search_tokens")),
}
COMMANDS = {"study": Command("is what a search looks at worth looking at?", _declare, _study)}
