"""Masks keep exactly what they say; packed matrices come back bit for bit and take the bytes that are counted."""

from __future__ import annotations

import pytest
import torch

from autoprune.errors import ExportError, SettingError
from autoprune.patterns import Blocks, Grouped, packed_bytes, pattern_of, stored_bytes
from autoprune.pruning.masks.choose import mask_of
from autoprune.pruning.masks.packing import pack

PATTERNS = ("unstructured", "2", "4", "8", "5", "8x1", "8x2", "4x32", "16x16")
SIZES = ((1, 1), (8, 32), (7, 13), (24, 40), (33, 70), (5, 300))


def options(text: str) -> list[int]:
    full = pattern_of(text).full
    return list(range(full + 1)) if full < 100 else [0, 1, 10, 37, 50, 90, 100]


def scores(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("size", SIZES)
def test_masks_keep_exactly_what_the_option_says(text: str, size: tuple[int, int]) -> None:
    pattern = pattern_of(text)
    for option in options(text):
        mask = mask_of(pattern, scores(*size), option)
        assert mask.shape == size
        if not isinstance(pattern, Blocks) or not pattern.refusal(*size):
            assert int(mask.sum()) == pattern.kept(*size, option)
        else:
            assert int(mask.sum()) <= pattern.kept(*size, option)
    assert bool(mask.all()), "the last option keeps everything"


@pytest.mark.parametrize("text", PATTERNS)
def test_what_is_kept_is_what_scores_highest(text: str) -> None:
    pattern, found = pattern_of(text), scores(16, 64)
    half = mask_of(pattern, found, max(1, pattern.full // 2))
    assert found[half].mean() > found[~half].mean() if text != "16x16" else True
    if isinstance(pattern, Grouped):
        for row, kept in zip(found[:, : pattern.full], half[:, : pattern.full], strict=True):
            assert row[kept].min() > row[~kept].max()


def test_ties_go_to_the_first() -> None:
    flat = torch.ones(4, 8)
    assert mask_of(pattern_of("unstructured"), flat, 50).flatten().tolist() == [True] * 16 + [False] * 16
    assert mask_of(pattern_of("4"), flat, 1)[0].tolist() == [True, False, False, False] * 2
    assert mask_of(pattern_of("2x2"), flat, 25).nonzero()[:, 1].max() == 3
    assert mask_of(pattern_of("unstructured"), flat, 50, by_row=True).sum(1).tolist() == [4] * 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("percent", [1, 10, 37, 50, 99, 100])
def test_by_row_every_row_has_its_share_and_the_matrix_its_count(size: tuple[int, int], percent: int) -> None:
    pattern = pattern_of("unstructured")
    counts = mask_of(pattern, scores(*size), percent, by_row=True).sum(1)
    assert int(counts.sum()) == pattern.kept(*size, percent)
    assert counts.max() - counts.min() <= 1


def cases(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Matrices whose rows may be empty or full."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    lumpy = (
        scores(rows, columns) * torch.linspace(0, 1, rows)[:, None] ** 8
    )  # first rows empty, last ones full
    return {"random": scores(rows, columns, 5), "lumpy": lumpy, "weights": weight.abs()}


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_matrices_come_back_and_take_what_is_counted(
    text: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    pattern = pattern_of(text)
    weight = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
    for score in cases(*size).values():
        for option in options(text):
            masked = torch.where(mask_of(pattern, score, option), weight, torch.zeros((), dtype=dtype))
            packed = pack(masked, pattern, option)
            assert torch.equal(packed.to_dense(), masked)
            assert packed.bytes == packed_bytes(pattern, *size, option, dtype.itemsize)


def test_kept_weights_that_are_zero_change_no_size() -> None:
    pattern, weight = pattern_of("4"), torch.zeros(4, 8)
    weight[0, 3] = -1.0
    packed = pack(weight, pattern, 2)
    assert torch.equal(packed.to_dense(), weight) and packed.bytes == packed_bytes(pattern, 4, 8, 2, 4)


@pytest.mark.parametrize("text", ["unstructured", "4", "8x1"])
def test_a_matrix_that_holds_more_is_refused(text: str) -> None:
    pattern = pattern_of(text)
    with pytest.raises(ExportError, match=f"holds more weights than {text} at {pattern.full // 2} keeps"):
        pack(torch.ones(8, 8), pattern, pattern.full // 2)


def test_bytes_of_known_forms() -> None:
    two_four = pattern_of("4")
    assert packed_bytes(two_four, 16, 64, 2, 2) == 16 * 32 * 2 + 16 * 64 // 8  # 1.125 bytes a weight
    assert packed_bytes(pattern_of("8"), 8, 64, 1, 2) == 8 * 8 * 2 + 8 * 3  # 3 bits a group
    assert packed_bytes(pattern_of("unstructured"), 8, 64, 50, 2) == 8 * 64 + 8 * (8 + 4)
    assert packed_bytes(pattern_of("8x2"), 16, 64, 50, 2) == 16 * 64 + 32 + 2 * 4
    assert stored_bytes(pattern_of("unstructured"), 8, 64, 99, 2) == 8 * 64 * 2, (
        "dense where packing does not pay"
    )
    assert stored_bytes(pattern_of("unstructured"), 8, 64, 100, 2) == 8 * 64 * 2


@pytest.mark.parametrize(
    "text", ["", "0", "1", "04", "1x1", "8x", "x8", "8x0", "2:4", "nm", "8x2x2", "-4", "²"]
)
def test_unknown_patterns_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="is unknown; allowed: unstructured, N:M"):
        pattern_of(text)
