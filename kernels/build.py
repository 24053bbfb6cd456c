"""Compiles the C++ kernels, once for a machine and a torch, into the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from autoprune.cache import Cache
from autoprune.errors import KernelError

SOURCES = Path(__file__).with_name("cpu")
FLAGS = (
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fopenmp",
    "-Wno-uninitialized",
)  # no -march: paths are chosen at run time
LIBRARY = "libautoprune_kernels.so"
COMPILERS = ("g++", "clang++", "c++")
SHOWN = 6  # last lines of a compiler that failed


def build(cache: Cache | None = None) -> Path:
    """The library of the kernels, compiled first when it is missing.

    Raises KernelError without a compiler (one is named by $CXX, else g++, clang++ or c++ is taken), and with its last
    lines when it fails.
    """
    compiler = find_compiler()
    inputs = [sources_digest(), _version(compiler), torch.__version__, list(FLAGS)]
    where = Cache(source="kernels") if cache is None else cache
    return where.folder("kernels", inputs, lambda folder: _compile(compiler, folder)) / LIBRARY


def find_compiler() -> str:
    """The C++ compiler to use; KernelError when there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        if found := shutil.which(name):
            return found
    wanted = f"CXX={named} does not exist" if named else f"there is no C++ compiler ({', '.join(COMPILERS)})"
    raise KernelError(f"{wanted}; install one or name it in $CXX: without it torch's own kernels are used")


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.cpp"))


def sources_digest() -> str:
    """Of everything that is compiled."""
    whole = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).splitlines()[0]


def _compile(compiler: str, folder: Path) -> None:
    home = Path(torch.__file__).parent
    objects = [folder / f"{path.stem}.o" for path in _sources()]
    commands = [
        [compiler, *FLAGS, f"-I{home / 'include'}", "-c", str(path), "-o", str(made)]
        for path, made in zip(_sources(), objects, strict=True)
    ]
    with ThreadPoolExecutor(max(1, min(len(commands), os.cpu_count() or 1))) as pool:
        list(pool.map(_run, commands))
    libraries = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
    _run([compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(folder / LIBRARY), *libraries])
    for path in objects:
        path.unlink()


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelError(f"the compiler {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = " | ".join(
            line.strip() for line in (done.stderr + done.stdout).splitlines()[-SHOWN:] if line.strip()
        )
        raise KernelError(f"{Path(command[0]).name} failed with exit code {done.returncode}: {said}")
    return done.stdout
