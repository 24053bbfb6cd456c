"""Lets a model run on the kernels where these pay: masked matrices packed, the others on the best dense path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

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
    """How many masked (or dense) matrices run our way for few tokens and for many, of how many.

    `why`: what hindered the others.
    """

    few: int
    many: int
    of: int
    why: str = ""
    what: Literal["masked", "dense"] = "masked"

    @property
    def text(self) -> str:
        """In words."""
        if not self.of:
            return f"no {self.what} matrices"
        way = "packed" if self.what == "masked" else "on kernels"
        said = f"{self.few} of {self.of} {self.what} matrices run {way} when decoding"
        said += f", {self.many} when reading a prompt"
        return f"{said} ({self.why})" if self.why else said


def run_loaded(model: Any, folder: Path) -> None:
    """Let a checkpoint that was loaded from `folder` run as fast as it can; `model.autoprune_kernels` says how."""
    family = family_of(str(model.config.model_type))
    if family in FAMILIES and model.device.type == "cpu":
        layout = family_class(family).layout
        model.autoprune_kernels = run_fast(model, layout, load_packed(folder), torch.get_num_threads())


def run_fast(model: Any, layout: Layout | None, packed: Mapping[str, Packed], threads: int) -> str:
    """Let a model on the CPU run its masked matrices packed, its others on the best dense path; say what was done."""
    from autoprune.hardware.fingerprint import last_level_cache
    from autoprune.kernels import native
    from autoprune.kernels.decode import run_attention, run_norms
    from autoprune.kernels.selector import Selector

    if os.environ.get(native.SWITCH) == "off":
        return f"{native.SWITCH}=off"
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    selector = Selector(threads, cold=size > (last_level_cache() or 0))
    done = [run_packed(model, layout, packed, selector)] if layout is not None and packed else []
    done.append(run_dense(model, selector))
    (norms, of), attention = run_norms(model, selector), run_attention(model, selector)
    for module in model.modules():
        if type(module).__module__.startswith("autoprune.kernels"):
            native.settle(module)
    said = [one.text for one in done if one.of]
    said += [f"{norms} of {of} norms on kernels"] if of else []
    return "; ".join(said + (["attention of one token on a kernel"] if attention else []))


def run_dense(model: Any, selector: Selector) -> Replaced:
    """Replace linear maps in place by such with the same parameters, where the selector knows a faster way."""
    from autoprune.kernels import native

    few = many = of = 0
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
            continue
        of += 1
        made = selector.dense(module)
        if made is not module:
            few, many = few + made.few, many + (made.many is not None)
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, made)
    return Replaced(few, many, of, native.missing(), "dense")


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
    block, kind, matrix, *expert = name.split(".")
    if expert:
        raise KernelError("experts run stacked, as transformers runs them: no kernel runs one of them")
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
