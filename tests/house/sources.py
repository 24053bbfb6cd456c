"""The files of the checkout and what they import, read without running them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("autoprune", "search_spaces", "evaluators", "kernels", "conf")
IGNORED = {".git", ".venv", "__pycache__", "build", "dist", "results"}


@dataclass(frozen=True)
class Import:
    """A dotted name that may be imported; `eager` when importing the file runs it."""

    name: str
    eager: bool

    @property
    def root(self) -> str:
        """Its first word."""
        return self.name.split(".")[0]

    def within(self, package: str) -> bool:
        """Whether it is the package or inside it."""
        return f"{self.name}.".startswith(f"{package}.")


@cache
def checkout_files() -> tuple[str, ...]:
    """Everything git tracks or would add, as posix paths."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        everything = (p.relative_to(ROOT) for p in ROOT.rglob("*"))
        listed = [p.as_posix() for p in everything if not IGNORED & set(p.parts)]
    return tuple(sorted(name for name in listed if name and (ROOT / name).is_file()))


def python_files(*prefixes: str) -> list[str]:
    """The Python files of these folders, or these files."""
    return [f for f in checkout_files() if f.endswith(".py") and any(_under(f, p) for p in prefixes)]


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip("/") + "/")


def parse(name: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((ROOT / name).read_text(encoding="utf8"), name)


def imports_of(name: str) -> list[Import]:
    """What a file of the checkout imports, relative names resolved; without what only type checkers see."""
    return imports(parse(name), ".".join(Path(name).parent.parts))


def imports(tree: ast.AST, package: str = "") -> list[Import]:
    """The imports of a syntax tree whose file lies in `package`."""
    return list(_walk(tree, package, eager=True))


def _walk(node: ast.AST, package: str, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, package, eager)
        lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(child, package, eager and not lazy)


def _from(node: ast.ImportFrom, package: str, eager: bool) -> Iterator[Import]:
    parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*parts, *([node.module] if node.module else [])])
    yield Import(base, eager)
    yield from (Import(f"{base}.{alias.name}", eager) for alias in node.names)


def eager_closure(name: str) -> dict[str, str]:
    """Files of ours that importing a file runs, itself included, each with the one that imports it."""
    seen, todo = {name: name}, [name]
    while todo:
        here = todo.pop()
        for imported in (i for i in imports_of(here) if i.eager):
            for file in _files_of(imported.name):
                if file not in seen:
                    seen[file] = here
                    todo.append(file)
    return seen


def _files_of(module: str) -> list[str]:
    """The module's file and the `__init__.py` of each package around it, where they are ours."""
    parts = module.split(".")
    packages = ["/".join(parts[:n]) + "/__init__.py" for n in range(1, len(parts) + 1)]
    return [f for f in (*packages, "/".join(parts) + ".py") if f in set(checkout_files())]
