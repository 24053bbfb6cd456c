"""Searches that were never run, worked out on paper: every number follows from the formula beside it.

Sizes are the published ones of two open models; prices of compute come from the cost model that searches use. What is
assumed of machines stands in `MACHINE`, what is assumed of a search in `SEARCH`; nothing here was measured at this size
but what says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoprune.shape import AnalyticCosts, Shape, full_plan

Row = tuple[str, str, str]  # quantity, formula, value


@dataclass(frozen=True)
class Machine:
    """What is assumed of a cluster; speeds in bytes and FLOPs a second."""

    gpus: int = 64
    per_node: int = 8
    gpu_bytes: float = 80e9
    matmul: float = 798e12  # bf16, read off one H100
    used: float = 0.5  # share of it that a forward pass reaches
    double: float = 30e12  # fp64
    link: float = 50e9  # host memory to device
    disk: float = 12e9  # a node's
    network: float = 12.5e9  # a node's
    host_bytes: float = 1.5e12
    price: float = 2.5  # dollars a GPU hour


@dataclass(frozen=True)
class Search:
    """What is assumed of a search."""

    window: int = 2048  # tokens
    calibration: int = 64  # windows
    fitness: int = 64
    table: int = 1  # windows of the sensitivity table
    tokens: float = 20e6  # for candidates after the table
    batch: int = 21  # plan-windows of a batch of search=auto: a champion and 20 contenders, a window each
    size: float = 0.65  # mean FLOPs of a candidate, of dense
    shared: float = 0.71  # time of naive with shared prefixes, measured: `autoprune bench sharing`
    finalists: int = 48
    held_out: int = 64  # windows of selection and of test
    points: int = 17  # plans scored on test: the front, and dense
    top_k: int = 512
    options: int = 9  # of every gene, zero among them


@dataclass(frozen=True)
class Model:
    """A model on paper; `experts`: the FFN's gene says how many experts are kept, not how wide they are."""

    name: str
    shape: Shape
    experts: bool = False


MACHINE, SEARCH = Machine(), Search()
DENSE = Model(
    "70B, dense",
    Shape("llama", 80, 8192, 64, 8, 128, 28672, 128256, tied=False, norm_params=8192),
)
MIXTURE = Model(
    "480B, mixture of experts (35B active)",
    Shape(
        *("qwen3_moe", 62, 6144, 96, 8, 128, 2560, 151936),
        tied=False,
        norm_params=6144,
        head_norm_params=256,
        experts=160,
        experts_per_token=8,
    ),
    experts=True,
)


def paper() -> str:
    """Both tables."""
    return "\n\n".join(f"### {model.name}\n\n{_table(rows(model))}" for model in (DENSE, MIXTURE))


def rows(model: Model, machine: Machine = MACHINE, search: Search = SEARCH) -> list[Row]:
    """Everything about one model."""
    found = _Figures(model, machine, search)
    return [*_sizes(found), *_setup(found), *_searching(found), *_moving(found)]


class _Figures:
    """The numbers that several rows use; bytes, FLOPs, seconds."""

    def __init__(self, model: Model, machine: Machine, search: Search) -> None:
        self.shape, self.machine, self.search, self.experts = model.shape, machine, search, model.experts
        costs = AnalyticCosts(model.shape, search.window)
        plan = full_plan(model.shape)
        block = [costs.sublayer(0, s) for s in plan.sublayers[:2]]
        self.blocks = model.shape.blocks
        self.block_bytes = sum(s["bytes"] for s in block)
        self.bytes = costs.base["bytes"] + self.blocks * self.block_bytes
        self.params = self.bytes / model.shape.bytes_per_value
        flops = costs.base["flops"] + self.blocks * sum(s["flops"] for s in block)
        self.flops = flops / search.window  # a token
        self.speed = machine.matmul * machine.used
        queries = model.shape.heads * model.shape.head_dim
        self.inner = [queries] if model.experts else [queries, model.shape.ffn]  # inputs of what is refit
        self.rungs = (search.options - 2) / 2  # sum of k/8 for k = 1 … 7
        self.refit = self.rungs * self.blocks * sum(self.inner) * model.shape.hidden * 2
        self.ladders = self.bytes + self.refit
        self.genes = 2 * self.blocks
        self.tabled = self.genes * (search.options - 1) + 1  # evaluations
        self.table_tokens = self.tabled * search.table * search.window
        self.candidate = search.size * search.shared * self.flops / self.speed  # seconds a token
        self.table_seconds = self.table_tokens * search.shared * self.flops / self.speed
        self.search_seconds = search.tokens * self.candidate
        scored = search.finalists + search.points
        self.final_tokens = scored * search.held_out * search.window
        self.final_seconds = self.final_tokens * self.candidate
        self.passes = search.tokens / (search.batch * search.window)
        self.read_host, self.read_disk = self.bytes / machine.link, self.bytes / machine.disk


def _sizes(f: _Figures) -> list[Row]:
    m, s = f.machine, f.search
    needed = -(-f.bytes // m.gpu_bytes)
    return [
        ("parameters", "from the shape", f"{f.params / 1e9:.1f}B"),
        ("checkpoint", "2 bytes a parameter", _bytes(f.bytes)),
        ("a block", "2 bytes a parameter", _bytes(f.block_bytes)),
        (
            "forward pass, dense",
            f"FLOPs of {s.window:,} tokens / {s.window:,}",
            f"{f.flops / 1e9:.0f} GFLOP a token",
        ),
        ("devices that hold it", f"checkpoint / {_bytes(m.gpu_bytes)}, rounded up", f"{needed:.0f}"),
        ("genes", "2 a block", f"{f.genes}"),
    ]


def _setup(f: _Figures) -> list[Row]:
    m, s = f.machine, f.search
    largest = max(f.inner)
    tokens = s.calibration * s.window
    solved = sum(n**3 * (1 + sum((k / 8) ** 3 for k in range(1, 8)) / 3) for n in f.inner)
    refit = "o" if f.experts else "o and down"
    return [
        ("ladders", f"checkpoint + 3.5 copies of {refit} (options 1/8 … 7/8)", _bytes(f.ladders)),
        ("calibration", f"{tokens:,} tokens x GFLOP / speed", _time(tokens * f.flops / f.speed, "GPU")),
        ("moments of a site", f"{largest:,} squared x 8 bytes (fp64)", _bytes(8 * largest**2)),
        (
            "solving all sites",
            "n^3 for the order + sum of (nk/8)^3 / 3, fp64",
            _time(f.blocks * solved / m.double, "GPU"),
        ),
        (
            "teacher",
            f"{s.fitness * s.window:,} tokens x ({s.top_k} x 6 + 4) bytes",
            _bytes(s.fitness * s.window * (s.top_k * 6 + 4)),
        ),
    ]


def _searching(f: _Figures) -> list[Row]:
    m, s = f.machine, f.search
    total = f.table_seconds + f.search_seconds + f.final_seconds
    return [
        (
            "sensitivity table",
            f"{f.tabled:,} plans x {s.window:,} tokens",
            f"{f.table_tokens / 1e6:.1f}M tokens",
        ),
        ("its compute", f"tokens x GFLOP x {s.shared} / speed", _time(f.table_seconds, "GPU")),
        (
            "the search's compute",
            f"{s.tokens / 1e6:.0f}M tokens x GFLOP x {s.size} x {s.shared} / speed",
            _time(f.search_seconds, "GPU"),
        ),
        (
            "finalists and test",
            f"{f.final_tokens / 1e6:.1f}M tokens, likewise",
            _time(f.final_seconds, "GPU"),
        ),
        (
            "all compute",
            f"at {m.price:g} dollars a GPU hour",
            f"{_time(total, 'GPU')}, {total / 3600 * m.price:,.0f} dollars",
        ),
        (
            "batches one after the other",
            f"{s.tokens / 1e6:.0f}M tokens / ({s.batch} plan-windows x {s.window:,})",
            f"{f.passes:,.0f}",
        ),
    ]


def _moving(f: _Figures) -> list[Row]:
    m, s = f.machine, f.search
    nodes = m.gpus // m.per_node
    one = s.window * f.candidate  # seconds of a plan on a window
    plan = len(full_plan(f.shape).to_json())
    streamed = f.passes * max(f.read_host, s.batch * one)
    disk = f.passes * max(f.read_disk, s.batch * one)
    held = -(-f.bytes // m.gpu_bytes)
    return [
        (
            "ladders to the nodes",
            f"ladders / {_bytes(m.network)}/s, all {nodes} at once",
            _time(f.ladders / m.network),
        ),
        ("in host memory", f"ladders of {_bytes(m.host_bytes)} a node", f"{f.ladders / m.host_bytes:.0%}"),
        ("one read, host to device", f"checkpoint / {_bytes(m.link)}/s", _time(f.read_host)),
        ("one read from disk", f"checkpoint / {_bytes(m.disk)}/s", _time(f.read_disk)),
        ("a plan on a window", "tokens x GFLOP x size x shared / speed", _time(one)),
        (
            "plan-windows that hide a read",
            "read / a plan on a window",
            f"{f.read_host / one:.0f} (disk: {f.read_disk / one:.0f})",
        ),
        (
            "the search on one device, streamed",
            "batches x the slower of read and compute",
            f"{_time(streamed)} (disk: {_time(disk)})",
        ),
        (
            "the search, held by devices",
            f"on {held:.0f} of them, one block after the other: as the compute",
            _time(f.search_seconds),
        ),
        (
            "hidden states of a batch",
            f"{s.batch} x {s.window:,} x hidden x 2 bytes",
            _bytes(s.batch * s.window * f.shape.hidden * 2),
        ),
        (
            "network a second, searching",
            f"(plan of {plan:,} bytes + values) a plan-window",
            _bytes((plan + 200) / one) + "/s",
        ),
    ]


def _table(found: Sequence[Row]) -> str:
    lines = ["| what | from | value |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in found)])


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _time(seconds: float, whose: str = "") -> str:
    name = f"{whose} " if whose else ""
    if seconds < 100:
        return f"{seconds:.2g} {name}s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} {name}minutes"
    return f"{seconds / 3600:.1f} {name}hours"
