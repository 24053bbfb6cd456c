"""`autoprune cache`: what is kept, how much room it takes, and removing what no living process uses."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.commands.parser import Command, Parser
from autoprune.errors import SettingError, nearest

if TYPE_CHECKING:
    from autoprune.artifacts import Artifact

ACTIONS = ("list", "prune", "path")
DAY = 86400


def _declare(parser: Parser) -> None:
    parser.add_argument("action", metavar="list|prune|path", nargs="?", default="list", help="(%(default)s)")
    parser.add_argument("--kind", metavar="KIND", help="only artifacts of this kind, e.g. teacher")
    parser.add_argument("--each", action="store_true", help="list: a line for every artifact")
    parser.add_argument("--older", metavar="30d", help="prune: what was not used for so long")
    parser.add_argument("--keep", metavar="5GB", help="prune: the longest unused until this is left")
    parser.add_argument("--dry-run", action="store_true", help="prune: only say what would go")


def _cache(args: Namespace) -> None:
    if args.action not in ACTIONS:
        raise SettingError(f"cache: unknown action {args.action!r}" + nearest(args.action, ACTIONS))
    _check_options(args)
    from autoprune.cache import default_root

    root = default_root()
    if args.action == "path":
        print(root)
    elif args.action == "prune":
        _prune(root, args)
    else:
        _list(root, args)


def _check_options(args: Namespace) -> None:
    """An option that an action does not have would otherwise be ignored."""
    given = {"--each": args.each, "--older": args.older, "--keep": args.keep, "--dry-run": args.dry_run}
    allowed = {"list": ("--each",), "prune": ("--older", "--keep", "--dry-run"), "path": ()}[args.action]
    for option, value in {**given, **({"--kind": args.kind} if args.action == "path" else {})}.items():
        if value and option not in allowed:
            raise SettingError(f"cache {args.action} takes no {option}")


def _found(root: Path, kind: str | None) -> list[Artifact]:
    from autoprune.artifacts import artifacts

    found = artifacts(root)
    kinds = {a.kind for a in found}
    if kind and found and kind not in kinds:
        raise SettingError(f"--kind {kind}: the cache {root} holds no such kind" + nearest(kind, kinds))
    return [a for a in found if not kind or a.kind == kind]


def _list(root: Path, args: Namespace) -> None:
    from autoprune.artifacts import teacher_bound

    bound, found = teacher_bound(), _found(root, args.kind)
    if not found:
        print(f"{root} holds no artifacts")
        return
    groups: dict[tuple[str, ...], list[Artifact]] = {}
    for artifact in found:
        name = (artifact.folder.name,) if args.each else ()
        groups.setdefault((artifact.kind, *name, artifact.source or "not recorded"), []).append(artifact)
    heads = ["kind", *(["artifact"] if args.each else []), "made from", "count", "size", "age", "last used"]
    lines = [_line(key, group) for key, group in sorted(groups.items())]
    _print_table(heads, lines)
    print(
        f"\n{len(found):,} artifacts, {_size(found)} in {root}; teachers are held within {bound / 1e9:g} GB"
    )


def _line(key: Sequence[str], group: Sequence[Artifact]) -> list[str]:
    now = time.time()
    ages = [now - min(a.made for a in group), now - max(a.used for a in group)]
    return [*key, f"{len(group):,}", _size(group), *map(_age, ages)]


def _print_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    right = len(heads) - 4  # from here on there are numbers
    for line in [heads, *lines]:
        cells = [
            c.rjust(w) if i >= right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _prune(root: Path, args: Namespace) -> None:
    from autoprune.artifacts import older, over, parse_age, parse_size, prune, teacher_bound

    age = parse_age(args.older, "--older") if args.older else None
    keep = parse_size(args.keep, "--keep") if args.keep else None
    if age is None and keep is None:
        if args.kind not in (None, "teacher"):
            raise SettingError("cache prune: say what may go: --older 30d, --keep 5GB")
        args.kind, keep = "teacher", teacher_bound()
    if not _found(root, args.kind):
        print(f"{root} holds no artifacts")
        return

    def wanted(found: list[Artifact]) -> list[Artifact]:
        rest = [a for a in found if not args.kind or a.kind == args.kind]
        aged = older(age)(rest) if age is not None else []
        surplus = over(keep)([a for a in rest if a not in aged]) if keep is not None else []
        return [*aged, *surplus]

    gone, used = prune(root, wanted, args.dry_run)
    print(f"{'would remove' if args.dry_run else 'removed'} {len(gone):,} artifacts, {_size(gone)}")
    if used:
        print(f"kept {len(used):,} more, {_size(used)}: a living process may use them")


def _size(found: Sequence[Artifact]) -> str:
    size = float(sum(a.bytes for a in found))
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _age(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * DAY else f"{seconds / DAY:.0f} d"


COMMANDS = {"cache": Command("list or prune what is kept between runs", _declare, _cache)}
