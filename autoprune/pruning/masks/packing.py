"""The reference packer: a masked matrix as kept values and what says where they stand, and exactly back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import ExportError
from autoprune.patterns import Blocks, Grouped, Pattern, Unstructured, column_bytes
from autoprune.pruning.masks.choose import blocked, mask_of

WIDE = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}


@dataclass(frozen=True)
class Packed:
    """A matrix [rows, columns] at an option of a pattern.

    `tensors`: `values` in the matrix's dtype, `index`, and `start` (int32: where in `values`, in units of a weight or a
    block, every row or block row begins).
    Unstructured: values by rows; index uint8 [rows, ceil(columns / 8)], bit b of byte j stands for column 8 j + b.
    N:M: values by rows, group after group, a short last group storing no more than it has; index uint8 [rows, bytes],
    groups one after another, lowest bits first: each kept value's position in ceil(log2 M) bits or, where that takes
    less, a map of M bits.
    Blocks: values [blocks, height, width], zero where a block reaches over the edge; index: the block columns.
    """

    pattern: Pattern
    option: int
    rows: int
    columns: int
    tensors: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Values and index."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def to_dense(self) -> Tensor:
        """The matrix, bit for bit."""
        return FORMS[type(self.pattern)][1](self)


def pack(weight: Tensor, pattern: Pattern, option: int) -> Packed:
    """Pack a matrix that holds zeros where it is masked; raises ExportError when it has more than the option keeps.

    Kept weights that happen to be zero are stored like the others: sizes follow from the option alone.
    """
    mask = mask_of(pattern, (weight != 0).float(), option)
    if bool(((weight != 0) & ~mask).any()):
        raise ExportError(
            f"a matrix of {list(weight.shape)} holds more weights than {pattern.text} at {option} keeps"
        )
    rows, columns = weight.shape
    return Packed(pattern, option, rows, columns, FORMS[type(pattern)][0](weight, mask, pattern, option))


def _pack_bitmap(weight: Tensor, mask: Tensor, pattern: Pattern, option: int) -> dict[str, Tensor]:
    bits = np.packbits(mask.numpy(), axis=1, bitorder="little")
    return {"values": weight[mask], "index": torch.from_numpy(bits), "start": _starts(mask.sum(1))}


def _bitmap(packed: Packed) -> Tensor:
    bits = np.unpackbits(packed.tensors["index"].numpy(), axis=1, count=packed.columns, bitorder="little")
    dense = torch.zeros(packed.rows, packed.columns, dtype=packed.tensors["values"].dtype)
    dense[torch.from_numpy(bits).bool()] = packed.tensors["values"]
    return dense


def _pack_groups(weight: Tensor, mask: Tensor, pattern: Pattern, option: int) -> dict[str, Tensor]:
    assert isinstance(pattern, Grouped)
    size, (rows, columns) = pattern.full, weight.shape
    short = -columns % size
    values = torch.nn.functional.pad(weight, (0, short)).view(rows, -1, size)
    kept = torch.nn.functional.pad(mask, (0, short)).view(rows, -1, size)
    order = torch.argsort(kept.int(), dim=-1, descending=True, stable=True)[..., :option]
    real = kept.gather(-1, order)
    found = torch.where(real, values.gather(-1, order), torch.zeros((), dtype=weight.dtype))
    if pattern.bits(option) == size:
        bits = kept.numpy()
    else:
        positions = order.numpy()[..., None] >> np.arange((size - 1).bit_length())
        bits = positions & 1
    bits = bits.reshape(rows, kept.shape[1] * pattern.bits(option))
    index = np.packbits(bits.astype(bool), axis=1, bitorder="little")
    return {"values": _unpadded(found, columns, pattern, option), "index": torch.from_numpy(index)}


def _unpadded(values: Tensor, columns: int, pattern: Grouped, option: int) -> Tensor:
    """[rows, stored values]: a short last group stores no more than it has."""
    groups, rest = divmod(columns, pattern.full)
    return values.reshape(len(values), -1)[:, : groups * option + min(option, rest)].contiguous()


def _groups(packed: Packed) -> Tensor:
    pattern, option = packed.pattern, packed.option
    assert isinstance(pattern, Grouped)
    size, groups = pattern.full, -(-packed.columns // pattern.full)
    width = pattern.bits(option)
    bits = np.unpackbits(packed.tensors["index"].numpy(), axis=1, count=groups * width, bitorder="little")
    bits = bits.reshape(packed.rows, groups, width)
    if width == size:
        mapped = torch.from_numpy(bits).bool()
        at = torch.argsort(mapped.int(), dim=-1, descending=True, stable=True)[..., :option]
    else:
        each = bits.reshape(packed.rows, groups, option, (size - 1).bit_length())
        at = torch.from_numpy((each.astype(np.int64) << np.arange(each.shape[-1])).sum(-1))
    values = packed.tensors["values"]
    padded = torch.nn.functional.pad(values, (0, groups * option - values.shape[1]))
    dense = torch.zeros(packed.rows, groups, size, dtype=values.dtype)
    dense.scatter_(-1, at, padded.view(packed.rows, groups, option))
    return dense.view(packed.rows, -1)[:, : packed.columns].contiguous()


def _pack_blocks(weight: Tensor, mask: Tensor, pattern: Pattern, option: int) -> dict[str, Tensor]:
    assert isinstance(pattern, Blocks)
    kept = blocked(pattern, mask).any(-1).any(-1)
    at = kept.nonzero()
    across = column_bytes(kept.shape[1])
    return {
        "values": blocked(pattern, weight)[kept].contiguous(),
        "index": at[:, 1].to(WIDE[across]),
        "start": _starts(kept.sum(1)),
    }


def _blocks(packed: Packed) -> Tensor:
    pattern = packed.pattern
    assert isinstance(pattern, Blocks)
    down, across = pattern.grid(packed.rows, packed.columns)
    values = packed.tensors["values"]
    starts = [*packed.tensors["start"].tolist(), len(values)]
    counts = torch.tensor([b - a for a, b in zip(starts, starts[1:], strict=False)])
    dense = torch.zeros(down, across, pattern.height, pattern.width, dtype=values.dtype)
    dense[torch.arange(down).repeat_interleave(counts), packed.tensors["index"].long()] = values
    whole = dense.permute(0, 2, 1, 3).reshape(down * pattern.height, across * pattern.width)
    return whole[: packed.rows, : packed.columns].contiguous()


def _starts(counts: Tensor) -> Tensor:
    return (counts.cumsum(0) - counts).to(torch.int32)


Pack = Callable[[Tensor, Tensor, Pattern, int], dict[str, Tensor]]
FORMS: Mapping[type, tuple[Pack, Callable[[Packed], Tensor]]] = {
    Unstructured: (_pack_bitmap, _bitmap),
    Grouped: (_pack_groups, _groups),
    Blocks: (_pack_blocks, _blocks),
}
