"""Lets a model run its masked matrices in packed form, on the kernels where these pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune.errors import KernelError
from autoprune.export.checkpoint import family_of
from autoprune.export.packed import load_packed
from autoprune.models import FAMILIES, family_class
from autoprune.models.layout import Layout
from autoprune.pruning.masks.packing import Packed

if TYPE_CHECKING:
    from autoprune.kernels.selector import Selector

FORMS = {"unstructured": "bitmap", "8x2": "blocks", "8x1": "blocks"}  # what kernels run, by pattern


@dataclass(frozen=True)
class Replaced:
    """How many masked matrices run packed for few tokens and for many, of how many; `why`: what hindered the others."""

    few: int
    many: int
    of: int
    why: str = ""

    @property
    def text(self) -> str:
        """In words."""
        if not self.of:
            return "no masked matrices"
        said = f"{self.few} of {self.of} masked matrices run packed when decoding, {self.many} when reading a prompt"
        return f"{said} ({self.why})" if self.why else said


def run_loaded(model: Any, folder: Path) -> None:
    """The same for a checkpoint that was loaded from `folder`; `model.autoprune_kernels` says what was done."""
    packed = load_packed(folder)
    if not packed:
        return
    family = family_of(str(model.config.model_type))
    if family not in FAMILIES or model.device.type != "cpu":
        return
    from autoprune.kernels.selector import Selector

    selector = Selector(torch.get_num_threads())
    model.autoprune_kernels = run_packed(model, family_class(family).layout, packed, selector).text


def run_packed(model: Any, layout: Layout, packed: Mapping[str, Packed], selector: Selector) -> Replaced:
    """Replace the modules of masked matrices in place, each as the selector chooses; say what was done."""
    from autoprune.kernels import native

    few = many = 0
    why = native.missing()
    for name, matrix in {} if why else packed.items():
        try:
            made = selector.chosen(_layer(model, layout, name, matrix))
        except KernelError as error:
            why = str(error)
            continue
        few, many = few + made.few, many + made.many
        owner, attribute = _place(model, layout, name)
        if made.few or made.many:
            setattr(owner, attribute, made)
    return Replaced(few, many, len(packed), why)


def _layer(model: Any, layout: Layout, name: str, matrix: Packed) -> Any:
    from autoprune.kernels.linear import SparseLinear

    form = FORMS.get(matrix.pattern.text)
    if form is None:
        raise KernelError(f"no kernel for the pattern {matrix.pattern.text}; there are: {', '.join(FORMS)}")
    owner, attribute = _place(model, layout, name)
    bias = getattr(getattr(owner, attribute), "bias", None)
    return SparseLinear(
        "bitmap" if form == "bitmap" else "blocks", matrix.tensors, matrix.rows, matrix.columns, bias
    )


def _place(model: Any, layout: Layout, name: str) -> tuple[Any, str]:
    """The module that holds the matrix's linear map, and under which name; KernelError where it holds others too."""
    block, kind, matrix = name.split(".")
    for path, names in layout.modules("attention" if kind == "attention" else "ffn").items():
        if matrix in names:
            if len(names) > 1:
                raise KernelError(
                    f"{path} holds {', '.join(names)} in one matrix: no kernel runs a part of it"
                )
            owner, _, attribute = f"{layout.blocks}.{block}.{path}".rpartition(".")
            return model.get_submodule(owner), attribute
    raise KernelError(f"the model has no matrix {name}")


def packed_bytes(model: torch.nn.Module) -> int:
    """What the layers of a model that run packed hold."""
    from autoprune.kernels.linear import SparseLinear

    return sum(m.stored_bytes for m in model.modules() if isinstance(m, SparseLinear))
