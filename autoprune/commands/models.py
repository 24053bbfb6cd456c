"""Commands that start from a model or from nothing: demo, profile, zoo, bench."""

from __future__ import annotations

from argparse import REMAINDER, Namespace

from autoprune.commands.parser import Command, Parser
from autoprune.commands.stopping import stopped_in


def _declare_demo(parser: Parser) -> None:
    parser.add_argument("--out", metavar="DIR", default="results/demo", help="the run folder (%(default)s)")


def _demo(args: Namespace) -> None:
    from autoprune import api

    with stopped_in(args.out):
        api.demo(args.out)


def _declare_profile(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a path or a hub id")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="settings, e.g. latency.batch=4")
    parser.add_argument("--to", metavar="FILE", help="save the latency table there, for latency=FILE")


def _profile(args: Namespace) -> None:
    from autoprune import api

    api.profile(args.model, args.to, args.settings)


def _declare_zoo(parser: Parser) -> None:
    parser.add_argument("action", choices=["train"], help="train a built-in model from scratch")
    parser.add_argument("name", metavar="NAME", help="its name, or images-vit for images of your own")
    parser.add_argument("--to", metavar="DIR", help="its folder, instead of the package's own")
    parser.add_argument("--data", metavar="DATA", help="for images-vit: labelled images")


def _zoo(args: Namespace) -> None:
    from autoprune import api

    api.zoo_train(args.name, args.to, args.data)


def _declare_bench(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="its name: autoprune list bench says what there is")
    parser.add_argument("args", metavar="…", nargs=REMAINDER, help="its own arguments")


def _bench(args: Namespace) -> None:
    from autoprune import api

    api.bench(args.name, args.args)


COMMANDS = {
    "demo": Command("run the main job on the built-in model", _declare_demo, _demo),
    "profile": Command("time a model's parts on this machine", _declare_profile, _profile),
    "zoo": Command("train a built-in model again", _declare_zoo, _zoo),
    "bench": Command("run a benchmark", _declare_bench, _bench),
}
