"""Commands on run folders and their checkpoints: resume, report, export, recover."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from autoprune.commands.parser import Command, Parser
from autoprune.commands.stopping import stopped_in
from autoprune.errors import LedgerError

EXPORTED_BY = ("key", "params", "prefill", "decode")


def _trust(parser: Parser) -> None:
    parser.add_argument(
        "--trust", action="store_true", help="run the folder's own classes; only for your own folders"
    )


def _declare_resume(parser: Parser) -> None:
    parser.add_argument("dir", metavar="DIR", help="a run folder")
    parser.add_argument(
        "--fork", metavar="NEW", help="start a new run there that adopts all finished evaluations"
    )
    _trust(parser)


def _resume(args: Namespace) -> None:
    _check_folders([args.dir])
    from autoprune import api

    with stopped_in(args.fork or args.dir):
        api.resume(args.dir, fork=args.fork, trust=args.trust)


def _declare_report(parser: Parser) -> None:
    parser.add_argument("dirs", metavar="DIR", nargs="+", help="run folders")
    _trust(parser)


def _report(args: Namespace) -> None:
    _check_folders(args.dirs)
    from autoprune import api

    api.report(args.dirs, trust=args.trust)


def _declare_export(parser: Parser) -> None:
    parser.add_argument("dir", metavar="DIR", help="a run folder")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--key", metavar="K", help="the plan of this key, or of a row's name: owl@0.5")
    for metric in EXPORTED_BY[1:]:
        choice.add_argument(
            f"--{metric}", metavar="0.6x", help=f"the best plan whose {metric} is at most this"
        )
    parser.add_argument("--to", metavar="OUT", required=True, help="the new checkpoint's folder")
    parser.add_argument("--refit", action="store_true", help="solve its weights once more")
    parser.add_argument("--int8", action="store_true", help="store its linear maps in int8")
    parser.add_argument("--recovery", metavar="NAME", default="none", help="distill: train it a little first")
    _steps(parser)
    _trust(parser)


def _export(args: Namespace) -> None:
    _check_folders([args.dir])
    from autoprune import api

    chosen = {name: getattr(args, name) for name in EXPORTED_BY if getattr(args, name) is not None}
    again: dict[str, Any] = {"refit": True} if args.refit else {}  # else what the run's settings say
    again |= {"int8": True} if args.int8 else {}
    if args.recovery != "none" or args.recovery_steps is not None:
        again |= {"recovery": args.recovery, "recovery_steps": args.recovery_steps}
    api.export(args.dir, to=args.to, trust=args.trust, **chosen, **again)


def _steps(parser: Parser) -> None:
    parser.add_argument("--recovery-steps", metavar="N", type=int, help="how many steps (300)")


def _declare_recover(parser: Parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that export wrote")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", help="such as recovery.learning_rate=1e-3"
    )
    parser.add_argument("--teacher", metavar="MODEL", required=True, help="the dense model it was made from")
    parser.add_argument("--data", metavar="DATA", required=True, help="text; its train split is trained on")
    parser.add_argument("--to", metavar="OUT", required=True, help="the recovered checkpoint's folder")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of the order of windows (%(default)s)"
    )
    _steps(parser)


def _recover(args: Namespace) -> None:
    from autoprune import api

    words = {"teacher": args.teacher, "data": args.data, "to": args.to}
    api.recover(args.checkpoint, **words, steps=args.recovery_steps, seed=args.seed, settings=args.settings)


def _check_folders(folders: list[str]) -> None:
    for folder in folders:
        if not (Path(folder) / "config.yaml").is_file():
            raise LedgerError(f"{folder} is not a run folder: it holds no config.yaml")


COMMANDS = {
    "resume": Command("go on with a run that stopped", _declare_resume, _resume),
    "report": Command("make the report of runs again", _declare_report, _report),
    "export": Command("write a plan of a run as a checkpoint", _declare_export, _export),
    "recover": Command("train an exported checkpoint towards its dense model", _declare_recover, _recover),
}
