"""Mask patterns as plain data: which weights of a matrix stand or fall together, and what the kept ones take packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from autoprune.errors import SettingError
from autoprune.space import SublayerPlan, is_mask

START = 4  # bytes of where a row's (or block row's) values begin
FULL = 100  # per cent
KNOWN = "unstructured, N:M as the M alone (4, 8, 16), or blocks RxC (8x1, 4x32)"


class Pattern(Protocol):
    """How a matrix [rows = outputs, columns = inputs] is thinned; an option is a per cent, or the N of N:M."""

    @property
    def text(self) -> str:
        """The second half of a plan setting, as in `up.8x1`."""

    @property
    def full(self) -> int:
        """The option that keeps everything."""

    def kept(self, rows: int, columns: int, option: int) -> int:
        """How many weights an option stores."""

    def index_bytes(self, rows: int, columns: int, option: int) -> int:
        """What says where they stand."""

    def refusal(self, rows: int, columns: int) -> str:
        """Why the pattern does not fit such a matrix; empty when it does."""


@dataclass(frozen=True)
class Unstructured:
    """Single weights, anywhere. Packed: values row by row, a bitmap, and where each row begins."""

    text: str = "unstructured"
    full: int = FULL

    def kept(self, rows: int, columns: int, option: int) -> int:
        """The share, to the nearest weight."""
        return share(rows * columns, option)

    def index_bytes(self, rows: int, columns: int, option: int) -> int:
        """One bit a weight, rows on whole bytes."""
        return rows * (-(-columns // 8) + START)

    def refusal(self, rows: int, columns: int) -> str:
        """It fits any."""
        return ""


@dataclass(frozen=True)
class Grouped:
    """N of every M neighbours along the inputs. A last group that is short keeps at most what it has."""

    full: int

    @property
    def text(self) -> str:
        """M alone."""
        return str(self.full)

    def kept(self, rows: int, columns: int, option: int) -> int:
        """N in every group."""
        groups, rest = divmod(columns, self.full)
        return rows * (groups * option + min(option, rest))

    def index_bytes(self, rows: int, columns: int, option: int) -> int:
        """Rows on whole bytes; see `bits`."""
        return rows * -(-(-(-columns // self.full) * self.bits(option)) // 8)

    def bits(self, option: int) -> int:
        """Of a group: the position of each kept weight or, where that takes less, a bitmap."""
        return min(option * (self.full - 1).bit_length(), self.full)

    def refusal(self, rows: int, columns: int) -> str:
        """Groups must fill the rows."""
        return f"{columns} inputs are no multiple of {self.full}" if columns % self.full else ""


@dataclass(frozen=True)
class Blocks:
    """Blocks of `height` outputs x `width` inputs, at the edge padded. Packed as block rows with column indices."""

    height: int
    width: int
    full: int = FULL

    @property
    def text(self) -> str:
        """RxC."""
        return f"{self.height}x{self.width}"

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Block rows and block columns."""
        return -(-rows // self.height), -(-columns // self.width)

    def blocks(self, rows: int, columns: int, option: int) -> int:
        """How many blocks an option keeps: the share, to the nearest block."""
        down, across = self.grid(rows, columns)
        return share(down * across, option)

    def kept(self, rows: int, columns: int, option: int) -> int:
        """All of every kept block, padding included, but never more than the matrix has."""
        return min(rows * columns, self.blocks(rows, columns, option) * self.height * self.width)

    def index_bytes(self, rows: int, columns: int, option: int) -> int:
        """A block column each, in one byte, two or four, and where each block row begins."""
        down, across = self.grid(rows, columns)
        return self.blocks(rows, columns, option) * column_bytes(across) + down * START

    def refusal(self, rows: int, columns: int) -> str:
        """Blocks must fill the matrix."""
        if rows % self.height:
            return f"{rows} outputs are no multiple of {self.height}"
        return f"{columns} inputs are no multiple of {self.width}" if columns % self.width else ""


def share(count: int, percent: int) -> int:
    """Per cent of a count, halves up, in whole numbers."""
    return (2 * count * percent + FULL) // (2 * FULL)


def column_bytes(across: int) -> int:
    """Bytes of a block column's index."""
    return 1 if across <= 1 << 8 else 2 if across <= 1 << 16 else 4


@cache
def pattern_of(text: str) -> Pattern:
    """The pattern of a name; raises SettingError for an unknown one."""
    if text == "unstructured":
        return Unstructured()
    sizes = text.split("x")
    if all(s.isdecimal() and s == str(int(s)) and int(s) for s in sizes):
        if len(sizes) == 1 and int(text) > 1:
            return Grouped(int(text))
        if len(sizes) == 2 and text != "1x1":
            return Blocks(int(sizes[0]), int(sizes[1]))
    raise SettingError(f"pattern={text} is unknown; allowed: {KNOWN}")


def masks_of(plan: SublayerPlan) -> Mapping[str, tuple[Pattern, int]]:
    """Pattern and option of every masked matrix of a sublayer, those kept whole left out."""
    found = {}
    for name, value in plan.settings:
        if is_mask(name):
            matrix, _, text = name.partition(".")
            pattern = pattern_of(text)
            if int(value) < pattern.full:
                found[matrix] = (pattern, int(value))
    return found


def stored_bytes(pattern: Pattern, rows: int, columns: int, option: int, size: int) -> int:
    """Bytes of a matrix of `size`-byte values, index included; as it is where packing does not pay."""
    dense = rows * columns * size
    if option >= pattern.full:
        return dense
    return min(dense, packed_bytes(pattern, rows, columns, option, size))


def packed_bytes(pattern: Pattern, rows: int, columns: int, option: int, size: int) -> int:
    """Bytes of the packed form, whether it pays or not; blocks at the edge are padded."""
    values = pattern.kept(rows, columns, option)
    if isinstance(pattern, Blocks):
        values = pattern.blocks(rows, columns, option) * pattern.height * pattern.width
    return values * size + pattern.index_bytes(rows, columns, option)
