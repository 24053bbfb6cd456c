"""A GPU that is none: tensors that say they are on a device of their own, are computed by the CPU, and never meet one
of the CPU.

What a program forgets to move raises here as it would on a GPU, values are those of the CPU bit by bit, and calls that
look at values work. It knows nothing of streams, events and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "madeup"
_setup_privateuseone_for_python_backend(NAME)  # for good, and before anything is derived: see `make test`
_module = getattr(torch, NAME)
_module.get_amp_supported_dtype = lambda: [torch.bfloat16]
_module.get_rng_state = lambda device=0: torch.zeros(0, dtype=torch.uint8)
_module.set_rng_state = lambda state, device=0: None
GPU = torch.device(NAME, 0)
COPIES = ("aten::_to_copy", "aten::copy_")  # what may see both devices
ANSWERS = {
    "aten::_fused_sdp_choice": 0,
    "aten::_has_compatible_shallow_copy_type": False,
}  # 0: plain attention


class OnGpu(Tensor):
    """A tensor of the made-up GPU around one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=GPU,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Brings calls to the GPU that name it and hold no tensor of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        if _named(leaves) == NAME or any(isinstance(leaf, OnGpu) for leaf in leaves):
            return _run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@contextmanager
def made_up_gpu() -> Iterator[torch.device]:
    """The GPU is there."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) copies where the mode sees it
    try:
        with _Factories():
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    name, leaves = func._schema.name, tree_leaves((args, kwargs))
    if name in ANSWERS:
        return ANSWERS[name]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    ours = [t for t in tensors if isinstance(t, OnGpu)]
    target = _named(leaves) or (NAME if ours else "cpu")
    if name == "aten::copy_":
        target = args[0].device.type
    elif name not in COPIES and ours:
        _check_together(name, tensors)
    if kwargs.get("generator") is not None and target == NAME:
        raise RuntimeError(f"{name}: Expected a {NAME!r} device type for generator but found 'cpu'")
    args = tree_map(_plain, tuple(args))
    if name == "aten::histc":  # of whole numbers a GPU has it, too
        args = (args[0].float(), *args[1:])
    found = func(*args, **tree_map(_plain, dict(kwargs)))
    if target != NAME:
        return found
    if any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns):
        known = {id(t.held): t for t in ours}  # those that were written to, as the program knows them
        return tree_map(lambda x: known[id(x)] if isinstance(x, Tensor) else x, found)
    with torch.inference_mode(False):  # a view of a usual tensor is one
        return tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) else x, found)


def _check_together(name: str, tensors: Sequence[Tensor]) -> None:
    if any(not isinstance(t, OnGpu) and t.dim() > 0 for t in tensors):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found {NAME} and cpu")


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, OnGpu):
        return leaf.held
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == NAME else leaf


def _named(leaves: Sequence[Any]) -> str | None:
    """The type of the device that a call names."""
    return next((leaf.type for leaf in leaves if isinstance(leaf, torch.device)), None)
