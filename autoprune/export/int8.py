"""Checkpoints whose linear maps inside blocks are stored in int8: a smaller file, and what runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprune.errors import ExportError, KernelError
from autoprune.export.packed import masks
from autoprune.models.layout import Layout
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.export.roundtrip import Probe, RoundTrip
    from autoprune.kernels.int8 import Rounded

FOLDER = "int8"  # below the checkpoint: loaders that do not know it find no weights, instead of wrong ones
FILE = "model.safetensors"
FORMAT = "autoprune-int8-1"
FORM = "unstructured"  # the pattern of masks that has an int8 kernel
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def check_int8(layout: Layout | None, dtype: torch.dtype, classifier: bool, setting: str) -> None:
    """Raise KernelError, naming `setting`, where models of this kind have no int8 kernels here."""
    from autoprune.kernels import native

    why = ""
    if classifier:
        why = "int8 serves decoding, and a classifier decodes nothing"
    elif layout is None or layout.transposed or layout.stacked:
        kind = (
            "stacks experts in one tensor"
            if layout and layout.stacked
            else "has no linear maps in its blocks"
        )
        why = f"int8 kernels run linear maps, and this family {kind}"
    elif dtype not in NAMES:
        why = f"int8 is made of {' or '.join(NAMES.values())} weights, not {dtype}"
    elif native.missing():
        why = f"there are no int8 kernels here: {native.missing()}"
    if why:
        raise KernelError(f"{setting}: {why}")


def check_masks(plan: Plan, setting: str) -> None:
    """Raise KernelError, naming `setting`, where a mask of the plan has no int8 kernel."""
    for name, (pattern, _) in masks(plan).items():
        if pattern.text != FORM:
            raise KernelError(
                f"{setting}: no int8 kernel for the pattern {pattern.text} of {name}; "
                f"there are: no mask, {FORM}"
            )


def rounded_maps(model: Any, layout: Layout) -> dict[str, Rounded]:
    """The linear maps inside blocks, rounded, by module name."""
    from autoprune.kernels.int8 import rounded

    return {name: rounded(module.weight) for name, module in _maps(model, layout)}


def round_in_place(model: Any, maps: Mapping[str, Rounded], spread: bool = False) -> Any:
    """The model, its linear maps in int8, tokens rounded too, however many; `spread`: only the weights are rounded."""
    from autoprune.kernels.int8 import Int8Linear

    for name, matrix in maps.items():
        module = model.get_submodule(name)
        if spread:
            module.weight.data = matrix.to_dense().to(module.weight.dtype)
            continue
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, Int8Linear(matrix, module.bias))
    return model


def save_int8(maps: Mapping[str, Rounded], folder: Path) -> None:
    """Put a checkpoint's weights into a file below `int8/`, those of `maps` in int8; the file of all others goes."""
    from autoprune.kernels.packing import bitmap_of

    files = sorted(folder.glob("*.safetensors"))
    state: dict[str, Tensor] = {}
    for file in files:
        state |= load_file(file)
    facts = {}
    for name, matrix in maps.items():
        del state[f"{name}.weight"]
        facts[name] = [*matrix.values.shape, str(matrix.dtype).removeprefix("torch."), matrix.thin]
        stored = bitmap_of(matrix.values) if matrix.thin else {"values": matrix.values}
        stored.pop("start", None)
        state |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
        state[f"{name}.scale"] = matrix.scale
    (folder / FOLDER).mkdir()
    save_file(state, folder / FOLDER / FILE, metadata={"format": FORMAT, "matrices": json.dumps(facts)})
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)


def holds_int8(folder: Path) -> bool:
    """Whether a checkpoint stores its linear maps in int8."""
    return (folder / FOLDER / FILE).is_file()


def load_int8(folder: Path) -> dict[str, Rounded]:
    """The linear maps of a checkpoint that are stored in int8, by module name; none of another one."""
    if not holds_int8(folder):
        return {}
    with safe_open(folder / FOLDER / FILE, framework="pt") as file:
        facts = json.loads(file.metadata()["matrices"])
        return {name: _read(file, name, *of) for name, of in facts.items()}


def spread_state(folder: Path) -> dict[str, Tensor]:
    """All weights by parameter name, those that are stored in int8 spread out in the dtype they were made of."""
    maps = load_int8(folder)
    with safe_open(folder / FOLDER / FILE, framework="pt") as file:
        mine = {f"{name}.{part}" for name in maps for part in ("values", "index", "scale")}
        state = {name: file.get_tensor(name) for name in file.keys() if name not in mine}  # noqa: SIM118 - no dict
    return state | {f"{name}.weight": m.to_dense().to(m.dtype) for name, m in maps.items()}


def expected_bytes(model: Any, maps: Mapping[str, Rounded]) -> int:
    """Of a model's weights, those of `maps` in int8."""
    whole: int = sum(p.numel() * p.element_size() for p in model.parameters())
    less: int = sum(m.values.numel() * m.dtype.itemsize - m.bytes for m in maps.values())
    return whole - less


def prove_int8(
    model: Any, maps: Mapping[str, Rounded], folder: Path, ids: Probe, parameters: int
) -> RoundTrip:
    """As `prove`, of a checkpoint in int8: `model` becomes the one that it holds; its int8 comes back bit for bit."""
    from autoprune.export.roundtrip import judge, reload

    expected = expected_bytes(model, maps)
    stored = load_int8(folder)
    for name, matrix in maps.items():
        found = stored.get(name)
        if (
            found is None
            or not torch.equal(found.values, matrix.values)
            or not torch.equal(found.scale, matrix.scale)
        ):
            raise ExportError(f"the round trip of {folder} failed: int8 {name} comes back different")
    round_in_place(model, maps, spread=True)
    return judge(model, folder / FOLDER, ids, parameters, reload([folder], ids)[0], expected)


def _read(file: Any, name: str, rows: int, columns: int, dtype: str, thin: bool) -> Rounded:
    from autoprune.kernels.int8 import Rounded

    values = file.get_tensor(f"{name}.values")
    if thin:
        bits = (file.get_tensor(f"{name}.index")[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
        whole = values.new_zeros(rows, columns)
        whole[bits.view(rows, -1)[:, :columns].bool()] = values
        values = whole
    return Rounded(values, file.get_tensor(f"{name}.scale"), getattr(torch, dtype))


def _maps(model: Any, layout: Layout) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.startswith(f"{layout.blocks}."):
            yield name, module
