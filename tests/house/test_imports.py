"""Who may import whom: read from the syntax trees, so that imports inside functions are seen too."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.house.sources import ROOMS, ROOT, Import, eager_closure, imports, imports_of, parse, python_files

CORE = ("space", "objective", "errors", "shape", "patterns", "kv_policy")
TORCH = ("torch", "transformers")
SEARCH_SIDE = ("searchers", "executors", "ledger", "study", "report", "commands", "cli", "api")
OPTIONAL = (  # imported when tasks, a GPU or Tune are asked for
    *("evaluators/harness.py", "evaluators/task_files.py"),
    "kernels/gpu.py",
    "autoprune/executors/bridge.py",
)
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}


def offences(files: list[str], forbidden: tuple[str, ...]) -> list[str]:
    """`file: name` for every import of a forbidden package."""
    return [f"{f}: {i.name}" for f in files for i in imports_of(f) if any(i.within(p) for p in forbidden)]


def test_the_core_imports_the_standard_library_and_numpy_only() -> None:
    allowed = {*sys.stdlib_module_names, "numpy"}
    ours = tuple(f"autoprune.{name}" for name in CORE)
    for file in (f"autoprune/{name}.py" for name in CORE):
        wrong = [
            i.name for i in imports_of(file) if i.root not in allowed and not any(i.within(o) for o in ours)
        ]
        assert not wrong, f"{file} imports {wrong}"


def test_searching_knows_no_torch() -> None:
    files = python_files(
        "autoprune/searchers", "autoprune/executors/serial.py", "autoprune/ledger.py", "autoprune/study.py"
    )
    assert not offences(files, TORCH)


@pytest.mark.parametrize(
    "room",
    ["autoprune/searchers", "autoprune/ledger.py", "autoprune/study.py", "autoprune/cli.py", "search_spaces"],
)
def test_importing_it_brings_in_no_torch(room: str) -> None:
    for start in python_files(room):
        chain = eager_closure(start)
        heavy = [f for f in chain if any(i.eager and i.root in TORCH for i in imports_of(f))]
        assert not heavy, f"{start} brings in torch through {[(f, chain[f]) for f in heavy]}"


def test_importing_the_package_or_its_help_runs_only_light_files() -> None:
    for start in ("autoprune/__init__.py", "autoprune/cli.py"):
        for file in eager_closure(start):
            outside = {i.root for i in imports_of(file) if i.eager} - set(sys.stdlib_module_names)
            assert outside <= {"autoprune"}, f"{start} brings in {outside} through {file}"


def test_the_model_side_knows_nothing_of_the_search() -> None:
    files = python_files("autoprune/models", "autoprune/pruning", "autoprune/supernet.py", "autoprune/export")
    assert not offences(files, tuple(f"autoprune.{name}" for name in SEARCH_SIDE))


def test_files_that_travel_inside_checkpoints_need_torch_and_transformers_only() -> None:
    room = "autoprune.export.modeling"
    for file in python_files("autoprune/export/modeling"):
        tree = parse(file)
        absolute = [n for n in ast.walk(tree) if not (isinstance(n, ast.ImportFrom) and n.level)]
        names = [
            i for node in absolute if isinstance(node, (ast.Import, ast.ImportFrom)) for i in _names(node)
        ]
        wrong = [n for n in names if n.split(".")[0] not in {*sys.stdlib_module_names, *TORCH}]
        relative = [i.name for i in imports_of(file) if i.root == "autoprune" and not i.within(room)]
        assert not wrong + relative, f"{file} imports {wrong + relative}"


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def test_the_engine_never_imports_what_is_plugged_into_it() -> None:
    assert not offences(python_files("autoprune"), ("search_spaces", "evaluators"))


def test_ray_stays_with_the_executors() -> None:
    files = [f for f in python_files(*ROOMS) if not f.startswith("autoprune/executors/")]
    assert not offences(files, ("ray",))


def unsafe(tree: ast.AST) -> list[str]:
    """Ways in which reading a file could run code that is in it."""
    found = [i.name for i in imports(tree) if i.root in UNSAFE_MODULES or i.name in UNSAFE_CALLS]
    found += [
        ast.unparse(n)
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n) in UNSAFE_CALLS
    ]
    return found + [
        "allow_pickle"
        for n in ast.walk(tree)
        if isinstance(n, ast.keyword) and n.arg == "allow_pickle" and ast.unparse(n.value) != "False"
    ]


def test_nothing_is_ever_unpickled() -> None:
    wrong = {file: unsafe(parse(file)) for file in python_files(*ROOMS)}
    assert not {file: names for file, names in wrong.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "import torch\nx = torch.load('a')",
        "from torch import load",
        "import numpy\nnumpy.load('a', allow_pickle=True)",
    ],
)
def test_the_pickle_rule_sees(source: str) -> None:
    assert unsafe(ast.parse(source))


def test_the_import_reader_sees_what_it_must() -> None:
    source = (
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hidden\n"
        "def f():\n    from .near import x\nclass C:\n    from ..far import y\n"
    )
    assert imports(ast.parse(source), "p.q") == [
        Import("a.b", True),
        Import("typing", True),
        Import("typing.TYPE_CHECKING", True),
        Import("p.q.near", False),
        Import("p.q.near.x", False),
        Import("p.far", True),
        Import("p.far.y", True),
    ]
    assert "autoprune/errors.py" in eager_closure("autoprune/objective.py")


def test_every_eager_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {d.split(">")[0] for d in project["dependencies"]}
    known = {*sys.stdlib_module_names, "autoprune", "search_spaces", "evaluators"}
    owners = packages_distributions()
    for file in (f for f in python_files(*ROOMS) if f not in OPTIONAL):
        for root in {i.root for i in imports_of(file) if i.eager} - known:
            owner = {name.lower().replace("_", "-") for name in owners.get(root, [root])}
            assert owner & declared, f"{file} imports {root}, which pyproject.toml does not declare"
