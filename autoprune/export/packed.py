"""The masked matrices of a checkpoint, packed, in a file beside the weights that hold zeros in their place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoprune.errors import ExportError
from autoprune.models.decoder import Decoder
from autoprune.patterns import Pattern, masks_of, pattern_of
from autoprune.pruning.masks.packing import Packed, pack
from autoprune.shape import matrices
from autoprune.space import KINDS, Plan

FOLDER = "packed"  # below the checkpoint, where loaders of weights do not look
FILE = "masked.safetensors"
FORMAT = "autoprune-masks-1"


def masks(plan: Plan) -> dict[str, tuple[Pattern, int]]:
    """Pattern and option of every masked matrix, by `BLOCK.KIND.MATRIX`."""
    places = [(f"{at // 2}.{s.kind}", s) for at, s in enumerate(plan.sublayers) if not s.gone]
    return {f"{place}.{name}": mask for place, s in places for name, mask in masks_of(s).items()}


def pack_model(adapter: Decoder, model: Any, plan: Plan) -> dict[str, Packed]:
    """The masked matrices of a model that was built for the plan, in its dtype; ExportError where zeros were lost."""
    wanted, found = masks(plan), {}
    for name, own, weight in _matrices(adapter, model, plan):
        if name in wanted:
            found[own] = pack(weight, *wanted[name])
    return found


def save_packed(packed: Mapping[str, Packed], folder: Path) -> None:
    """Write `packed/masked.safetensors` into a checkpoint."""
    tensors = {f"{name}.{part}": t for name, p in packed.items() for part, t in p.tensors.items()}
    facts = {n: [p.pattern.text, p.option, p.rows, p.columns] for n, p in packed.items()}
    (folder / FOLDER).mkdir()
    save_file(tensors, folder / FOLDER / FILE, metadata={"format": FORMAT, "matrices": json.dumps(facts)})


def load_packed(folder: Path) -> dict[str, Packed]:
    """The packed matrices of a checkpoint by `BLOCK.KIND.MATRIX`, of experts `BLOCK.KIND.MATRIX.EXPERT`."""
    path = folder / FOLDER / FILE
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["matrices"])
        names = list(file.keys())
        found = {}
        for name, (text, option, rows, columns) in facts.items():
            mine = {n.rpartition(".")[2]: file.get_tensor(n) for n in names if n.rpartition(".")[0] == name}
            found[name] = Packed(pattern_of(text), option, rows, columns, mine)
    return found


def prove_packed(adapter: Decoder, model: Any, plan: Plan, folder: Path) -> int:
    """Bytes of the packed matrices on disk, values and index; ExportError unless they are the model's, bit for bit."""
    found, wanted = load_packed(folder), masks(plan)
    weights = {own: weight for name, own, weight in _matrices(adapter, model, plan) if name in wanted}
    if found.keys() != weights.keys():
        raise ExportError(f"{folder / FOLDER} does not hold the plan's masked matrices")
    for name, packed in found.items():
        if not torch.equal(packed.to_dense(), weights[name]):
            raise ExportError(f"the round trip of {folder} failed: packed {name} comes back different")
    return sum(packed.bytes for packed in found.values())


def _matrices(adapter: Decoder, model: Any, plan: Plan) -> Iterator[tuple[str, str, Tensor]]:
    """Every matrix of a built model, on the CPU, after its name among masks and its own: experts have one each."""
    blocks = model.get_submodule(adapter.layout.blocks)
    for block in range(plan.blocks):
        for kind in KINDS:
            sublayer = plan.at(block, kind)
            if sublayer.gone:
                continue
            sizes = matrices(adapter.shape, sublayer)
            read = adapter.layout.read(blocks[block], kind, {n: rows for n, (rows, _) in sizes.items()})
            for name in sizes:
                whole, found = f"{block}.{kind}.{name}", read[name].cpu().contiguous()
                if found.ndim == 2:
                    yield whole, whole, found
                else:
                    yield from ((whole, f"{whole}.{at}", expert) for at, expert in enumerate(found))
