"""The shape of the files: short, with short functions, and no package where one would do harm."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.sources import ROOMS, ROOT, checkout_files, parse, python_files

FILE_LINES = 350
FUNCTION_LINES = 50


def test_files_and_functions_stay_short() -> None:
    for file in python_files(*ROOMS, "tests"):
        lines = len((ROOT / file).read_text(encoding="utf8").splitlines())
        assert lines <= FILE_LINES, f"{file} has {lines} lines, above {FILE_LINES}"
    for file in python_files(*ROOMS):
        for node in ast.walk(parse(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{file}:{node.lineno} {node.name} has {length} lines"


def test_no_package_under_tests_or_kernels() -> None:
    wrong = [
        f for f in checkout_files() if Path(f).name == "__init__.py" and f.startswith(("tests/", "kernels/"))
    ]
    assert not wrong, f"{wrong} would shadow a package of the same name"


def test_every_folder_with_python_files_of_the_packages_is_a_package() -> None:
    folders = {str(Path(f).parent) for f in python_files("autoprune", "search_spaces", "evaluators")}
    assert not [f for f in folders if not (ROOT / f / "__init__.py").is_file()]
