"""What can be named in a setting, read from YAML files and class docstrings without importing any class."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoprune.config import GROUPS
from autoprune.zoo import built_in, folder_of

MODEL, BENCH, EXPERIMENT = "model", "bench", "experiment"
ORDER = (MODEL, "space", "search", "evaluator", "executor", "recovery", EXPERIMENT, BENCH)
COMPOSED = ("space", "evaluator")  # lists of groups, each packaged under its own name


@dataclass(frozen=True)
class Setting:
    """A setting of a part as it is written on the command line, its default, what it means."""

    name: str
    default: str
    meaning: str = ""


@dataclass(frozen=True)
class Part:
    """Something that can be named: its name, one line on it, its settings."""

    name: str
    summary: str
    settings: tuple[Setting, ...] = ()


def groups() -> list[str]:
    """Every kind of thing that can be named, those of `conf/` among them."""
    folders = [f.name for f in files(GROUPS).iterdir() if f.is_dir() and not f.name.startswith(("_", "."))]
    found = {MODEL, BENCH, *folders}
    return [g for g in ORDER if g in found] + sorted(found - set(ORDER))


def written(group: str) -> str:
    """How a choice from the group is written."""
    if group == BENCH:
        return "autoprune bench NAME"
    if group == EXPERIMENT:
        return "+experiment=NAME"
    return f"{group}=[NAME,…]" if group in COMPOSED else f"{group}=NAME"


def parts(group: str) -> list[Part]:
    """The parts of a group by name."""
    if group == MODEL:
        return [Part(name, _model(folder_of(name))) for name in built_in()]
    if group == BENCH:
        from autoprune.bench import BENCHMARKS

        docs = {name: _module_doc(f"autoprune.bench.{name}") for name in sorted(BENCHMARKS)}
        return [Part(n, _first_sentence(d).partition(": ")[2] or _first_sentence(d)) for n, d in docs.items()]
    folder = files(GROUPS) / group
    names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))
    return [_configured(group, n, (folder / f"{n}.yaml").read_text(encoding="utf-8")) for n in names]


def _model(folder: Path) -> str:
    """From the checkpoint's own settings: its card may say more."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, blocks, hidden = (config.get(k) for k in ("model_type", "num_hidden_layers", "hidden_size"))
    return f"built in: {kind}, {blocks} blocks, hidden size {hidden}; see {folder.name}/README.md of the zoo"


def _configured(group: str, name: str, text: str) -> Part:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    values: Mapping[str, Any] = plain if isinstance(plain, dict) else {}
    remarks = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    remarks = [r for r in remarks if not r.startswith("@package")]
    doc = _class_doc(str(values["_target_"])) if "_target_" in values else " ".join(remarks)
    prefix = "" if group == EXPERIMENT else f"{group}.{name}." if group in COMPOSED else f"{group}."
    own = {k: v for k, v in values.items() if k not in ("_target_", "defaults")}
    meanings = _meanings(doc, list(own)) if "_target_" in values else {}
    settings = tuple(Setting(prefix + k, v, meanings.get(k.split(".")[0], "")) for k, v in _flat(own))
    return Part(name, _first_sentence(doc), settings)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield prefix + str(key), value if isinstance(value, str) else json.dumps(value)


def _meanings(doc: str, names: list[str]) -> dict[str, str]:
    """What a docstring of the form `name: meaning; name: meaning.` says of each setting."""
    if not names:
        return {}
    found = re.split(rf"(?:^|[\s;.])({'|'.join(map(re.escape, names))}): ", " ".join(doc.split()))
    pairs = zip(found[1::2], found[2::2], strict=True)
    return {name: _brief(meaning) for name, meaning in pairs}


def _brief(meaning: str) -> str:
    """The first sentence without what stands in brackets, and not longer than a line."""
    plain = re.sub(r"\s+\([^()]*\)", "", re.split(r"\.(?:\s|$)", meaning)[0]).replace("`", "")
    return textwrap.shorten(plain.rstrip(" ;."), 100, placeholder=" …")


def _first_sentence(doc: str) -> str:
    line = " ".join(doc.strip().split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", line)[0].rstrip(".").replace("`", "")


def _source(module: str) -> Path | None:
    """The file of a module, found from its top-level package: packages between are not imported."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root, *rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _module_doc(module: str) -> str:
    file = _source(module)
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "") if file else ""


def _class_doc(target: str) -> str:
    module, _, name = target.rpartition(".")
    file = _source(module)
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file else []:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return ast.get_docstring(node) or ""
    return ""
