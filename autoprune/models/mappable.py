"""Checkpoints whose tensors can be mapped as a model wants them: fp32, all experts of a block in one stack."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from autoprune.cache import Cache
from autoprune.errors import UnsupportedModelError
from autoprune.models.mapped import ENDING, Ranges

SHARD = 1 << 30  # bytes of a file, where no tensor is larger
LAYOUT = 2  # of the copies
FLOATS = ("F16", "BF16", "F32", "F64")
OTHERS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8}  # bytes of a value
EXPERT = re.compile(r"(.+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
STACKS = {  # part of an expert -> the stack that transformers makes while it loads, and the part's place in it
    **{"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0)},
    **{"w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0)},
}


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str  # safetensors' word for its dtype


@dataclass(frozen=True)
class Wanted:
    """A tensor of the copy: one that is stored, or the experts of a block, one behind the other."""

    shape: tuple[int, ...]
    parts: tuple[Stored, ...]

    @property
    def kind(self) -> str:
        """Its dtype in the copy."""
        return "F32" if self.parts[0].kind in FLOATS else self.parts[0].kind

    @property
    def bytes(self) -> int:
        """Its size in the copy."""
        return math.prod(self.shape) * (4 if self.kind == "F32" else OTHERS[self.kind])


def mappable(source: Path, cache: Cache) -> Path:
    """A checkpoint folder whose tensors can be mapped: `source`, or a copy in the cache.

    The copy is written tensor by tensor, of experts one by one, and never in memory as a whole. Raises
    UnsupportedModelError for tensors that are neither fp16, bf16, fp32, fp64 nor whole numbers.
    """
    files = sorted(source.glob(f"*{ENDING}"))
    wanted = _wanted(source, files)
    if all(len(each.parts) == 1 and each.kind == each.parts[0].kind for each in wanted.values()):
        return source
    inputs = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return cache.folder(
        "weights", [LAYOUT, str(source.absolute()), inputs], lambda to: _copy(source, wanted, to)
    )


def _wanted(source: Path, files: Iterable[Path]) -> dict[str, Wanted]:
    """The tensors of the copy by name."""
    found: dict[str, Wanted] = {}
    experts: dict[str, dict[tuple[int, int], Stored]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a handle is no dict
                part = file.get_slice(name)
                stored = Stored(path, name, tuple(part.get_shape()), part.get_dtype())
                if stored.kind not in (*FLOATS, *OTHERS):
                    raise UnsupportedModelError(
                        f"model={source}: {name} is stored as {stored.kind}, which no model can map"
                    )
                match = EXPERT.fullmatch(name)
                if match is None or match[3] not in STACKS:
                    found[name] = Wanted(stored.shape, (stored,))
                    continue
                stack, place = STACKS[match[3]]
                experts.setdefault(f"{match[1]}.mlp.experts.{stack}", {})[int(match[2]), place] = stored
    return found | {name: _stack(parts) for name, parts in experts.items()}


def _stack(parts: Mapping[tuple[int, int], Stored]) -> Wanted:
    """[experts, rows, columns]: of each expert all its parts, one after another by rows."""
    ordered = tuple(parts[at] for at in sorted(parts))
    count = len({expert for expert, _ in parts})
    rows, columns = ordered[0].shape
    return Wanted((count, rows * len(ordered) // count, columns), ordered)


def _copy(source: Path, wanted: Mapping[str, Wanted], to: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and path.suffix not in (ENDING, ".bin") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, to / path.name)
    places: dict[str, str] = {}
    with ExitStack() as held:
        files = {part.file: None for each in wanted.values() for part in each.parts}
        opened = {f: held.enter_context(safe_open(f, framework="pt")) for f in files}
        ranges = Ranges()

        def read(part: Stored) -> Tensor:
            return opened[part.file].get_tensor(part.name)  # type: ignore[no-any-return]

        for number, names in enumerate(_shards(wanted), 1):
            name = f"model-{number:05d}{ENDING}"
            _write(to / name, {n: wanted[n] for n in names}, read, ranges)
            places.update(dict.fromkeys(names, name))
    index = {"metadata": {}, "weight_map": places}
    (to / f"model{ENDING}.index.json").write_text(json.dumps(index))


def _shards(wanted: Mapping[str, Wanted]) -> list[list[str]]:
    """Names by file."""
    found: list[list[str]] = [[]]
    size = 0
    for name, each in wanted.items():
        if found[-1] and size + each.bytes > SHARD:
            found.append([])
            size = 0
        found[-1].append(name)
        size += each.bytes
    return found


def _write(
    path: Path, tensors: Mapping[str, Wanted], read: Callable[[Stored], Tensor], ranges: Ranges
) -> None:
    """A safetensors file: length of the header, header, values; `safetensors` itself wants all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, each in tensors.items():
        header[name] = {"dtype": each.kind, "shape": each.shape, "data_offsets": [end, end + each.bytes]}
        end += each.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in _in_order(tensors.values()):
            tensor = read(part)
            values = tensor.float() if tensor.is_floating_point() else tensor
            file.write(values.reshape(-1).view(torch.uint8).numpy().data)
            ranges.forget([tensor])


def _in_order(tensors: Iterable[Wanted]) -> Sequence[Stored]:
    return [part for each in tensors for part in each.parts]
