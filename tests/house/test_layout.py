"""A checkout, an editable install and a wheel import alike, and nothing is imported twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.house.sources import ROOT, checkout_files

PROBE = """
import importlib, importlib.util, sys
import autoprune
heavy = {"torch", "transformers", "pandas", "hydra", "omegaconf", "matplotlib", "numpy"} & set(sys.modules)
assert not heavy, heavy
import autoprune.conf, autoprune.kernels, search_spaces, evaluators
for leak in ("autoprune.search_spaces", "autoprune.evaluators", "autoprune.tests", "autoprune.autoprune"):
    try:
        importlib.import_module(leak)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{leak} can be imported: a second copy")
from importlib.resources import files
assert "defaults" in (files("autoprune.conf") / "config.yaml").read_text()
assert (files("autoprune.conf") / "search" / "random.yaml").is_file()
spec = importlib.util.find_spec("kernels")
assert spec is None or spec.origin is None, "kernels is a regular package: import transformers would break"
from autoprune.config import compose
assert compose(["model=x"]).space.structured._target_.startswith("search_spaces.")
print(autoprune.__file__)
"""


def probe(where: Path, path: list[Path], *flags: str) -> Path:
    """Run the probe in a fresh process in folder `where`; the folder from which it took autoprune."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, *flags, "-c", PROBE]
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).parent.parent


@pytest.fixture(scope="module")
def libraries() -> Path:
    """Where the installed libraries are. With -S, path hooks of an editable install do not help out."""
    return Path(sysconfig.get_path("purelib"))


DATA = (  # one file of every kind that is not Python, so that a lost pattern shows even where none is committed
    "autoprune/zoo/some-model/model.safetensors",
    "autoprune/zoo/some-model/config.json",
    "autoprune/zoo/some-model/README.md",
    "autoprune/report/some.j2",
    "conf/search/some.yaml",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's files elsewhere: building in place would leave build/ behind."""
    target = tmp_path_factory.mktemp("copy")
    for name in checkout_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    for name in DATA:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()
    return target


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of the copy, built with the setuptools that is here."""
    pytest.importorskip("setuptools")
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(out)]
    pip = [sys.executable, "-m", "pip", "wheel", *options, str(copy)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_bare_checkout(copy: Path, tmp_path: Path, libraries: Path) -> None:
    assert probe(tmp_path, [copy, libraries], "-S") == copy
    assert probe(copy, [libraries], "-S") == copy


def test_wheel(wheel: zipfile.ZipFile, tmp_path: Path, libraries: Path) -> None:
    wheel.extractall(tmp_path / "site")
    (tmp_path / "outside").mkdir()
    assert probe(tmp_path / "outside", [tmp_path / "site", libraries], "-S") == tmp_path / "site"


def test_editable_install_from_outside(tmp_path: Path) -> None:
    try:
        distribution("autoprune")
    except PackageNotFoundError:
        pytest.skip("autoprune is not installed here; make setup installs it")
    assert probe(tmp_path, []) == ROOT


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    moved = {"conf/": "autoprune/conf/", "kernels/": "autoprune/kernels/"}
    plain = {room: room for room in ("autoprune/", "search_spaces/", "evaluators/")}
    expected = {
        file.replace(room, place, 1)
        for room, place in {**moved, **plain}.items()
        for file in (*checkout_files(), *DATA)
        if file.startswith(room)
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    missing, extra = sorted(expected - held), sorted(held - expected)
    assert not missing, f"list their packages or patterns in pyproject.toml, [tool.setuptools]: {missing}"
    assert not extra
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_kernels_is_never_a_regular_package() -> None:
    spec = find_spec("kernels")
    assert spec is None or spec.origin is None


def test_version_and_pins() -> None:
    import autoprune

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert autoprune.__version__ == project["version"]
    requirement = pytest.importorskip("packaging.requirements").Requirement
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for wanted in map(requirement, [*project["dependencies"], *project["optional-dependencies"]["dev"]]):
        assert wanted.name in pins, f"constraints.txt has no tested version of {wanted.name}"
        assert wanted.specifier.contains(pins[wanted.name]), f"{wanted} excludes {pins[wanted.name]}"
