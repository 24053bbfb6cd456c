"""Numbers as readers want them: few digits, a dash where nothing was measured, never `nan`."""

from __future__ import annotations

MISSING = "–"


def digits(value: float | None, figures: int = 3) -> str:
    """A number to so many significant figures, without an exponent between 1e-4 and 1e6."""
    if value is None:
        return MISSING
    text = f"{value:#.{figures}g}"
    if "e" in text and 1e-4 <= abs(value) < 1e6:
        text = f"{value:.0f}"
    return text.removesuffix(".")


def kl(value: float | None) -> str:
    """A divergence: three figures, and `0` below 1e-5 (that of the dense model to itself)."""
    return "0" if value is not None and abs(value) < 1e-5 else digits(value)


def ratio(value: float | None) -> str:
    """A ratio to dense, e.g. `0.58x`."""
    return MISSING if value is None else f"{value:.2f}x"


def percent(change: float | None) -> str:
    """A signed change in per cent, e.g. `-70 %`."""
    return MISSING if change is None else f"{change:+.0f} %".replace("-", "−")


def bounds(value: tuple[float, float] | None) -> str:
    """An interval, e.g. `[0.57, 0.60]`; empty when there is none."""
    return "" if value is None else f"[{value[0]:.2f}, {value[1]:.2f}]"


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """A count in thousands or millions, e.g. `1.5M`."""
    if value is None:
        return MISSING
    if value >= 999_500:  # which would round to 1000k
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e3 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
