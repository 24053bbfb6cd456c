"""What `autoprune bench gpu` says of searches: plans of a small random model, scored on the GPU and on the CPU.

Needs torch, numpy and transformers, nothing else. Ladders are built on the CPU; both devices read the same ones, so
that scores must agree to rounding. Ranking is told by the moments that calibration takes on either.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.calibration import Stream
from autoprune.pruning.feed import DenseBlocks
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.refit import build_refit
from autoprune.space import KINDS, Plan
from autoprune.streamed import StreamedSupernet
from autoprune.supernet import Supernet

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "vocab_size": 2048,
}
HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
KEPT = {"kv_groups": (0, 2, 4), "width": (0, 512, 1024, 1376)}
SEQUENCES, TOKENS, PLANS = 8, 128, 12
SCORES = 1e-3  # of a KL, and of the smallest that is told apart
SMALLEST = 1e-3
MOMENTS = 1e-3
ROUNDS = 3

Found = tuple[str, float, float]


@dataclass(frozen=True)
class Given:
    """A model in numbers, what it reads, and plans of it."""

    config: Any
    weights: dict[str, Tensor]
    ids: Tensor
    plans: list[Plan]

    def on(self, device: torch.device) -> Any:
        """Its adapter on a device."""
        from transformers import LlamaForCausalLM

        model: Any = LlamaForCausalLM(self.config)
        model.load_state_dict(self.weights)
        return LlamaAdapter(model.to(device).eval().requires_grad_(False))


def search_checks(device: torch.device) -> tuple[list[Found], list[str]]:
    """Largest errors against the CPU, and lines with what each device scores a second."""
    given, cpu = _given(), torch.device("cpu")
    recipe = LadderRecipe(windows=given.ids.numpy().astype(np.int32), sequences=SEQUENCES, options=KEPT)
    with tempfile.TemporaryDirectory(prefix="autoprune-gpu-") as folder:
        build_refit(given.on(cpu), recipe, Path(folder))
        wanted, slow = _scored(_plain(given.on(cpu), folder), given)
        found, fast = _scored(_plain(given.on(device), folder), given)
        fed, streamed = _scored(_streamed(given.on(device), folder), given)
    checks = [
        ("moments of calibration, fp32", _moments(given, device), MOMENTS),
        (f"KL of {PLANS} plans, fp32, against the CPU", _apart(found, wanted), SCORES),
        ("the same with stream=host, against stream=off", _apart(fed, found), SCORES),
    ]
    rates = {"CPU": slow, "GPU": fast, "GPU, stream=host": streamed}
    lines = ["| where | tokens/s of candidates |", "|---|---|"]
    return checks, [*lines, *(f"| {name} | {rate:,.0f} |" for name, rate in rates.items())]


def _given() -> Given:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, **HEADS, head_dim=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
        weights = {n: t + 0.02 * torch.randn(t.shape) for n, t in model.state_dict().items()}
        ids = torch.randint(0, SIZES["vocab_size"], (SEQUENCES, TOKENS))
    rng, blocks = np.random.default_rng(0), SIZES["num_hidden_layers"]
    drawn = [
        [(int(rng.choice(KEPT["kv_groups"])), int(rng.choice(KEPT["width"]))) for _ in range(blocks)]
        for _ in range(PLANS)
    ]
    return Given(config, weights, ids, [Plan.of(pairs) for pairs in drawn])


def _plain(adapter: Any, folder: str) -> Supernet:
    return Supernet(adapter, StoredLadders(adapter, Path(folder)))


def _streamed(adapter: Any, folder: str) -> Supernet:
    """Ladders in host memory, fed to the device; the dense blocks, too."""
    device, room = adapter.model.device, 1 << 28
    sites = list(itertools.product(range(adapter.shape.blocks), KINDS))
    full = {site: {n: t.cpu() for n, t in adapter.weights(*site).items()} for site in sites}
    adapter.fed = DenseBlocks(full, room, device)
    ladders = StoredLadders(adapter, Path(folder))
    hosted = range(adapter.shape.blocks) if device.type == "cuda" else ()
    feed = ladders.feed(room, device, hosted=frozenset(hosted))
    return StreamedSupernet(adapter, ladders, 1 << 30, feed)


@torch.inference_mode()
def _scored(supernet: Supernet, given: Given) -> tuple[list[float], float]:
    """Mean KL of every plan to the dense model in nats, and tokens a second of the fastest of some rounds."""
    adapter: Any = supernet.adapter
    state = adapter.embed(given.ids)
    for block, kind in itertools.product(range(adapter.shape.blocks), KINDS):
        state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
    dense = torch.log_softmax(adapter.head(state), -1)
    found: dict[int, float] = {}

    def visit(index: int, logits: Tensor) -> None:
        kl = (dense.exp() * (dense - torch.log_softmax(logits, -1))).sum(-1)
        found[index] = float(kl.double().mean())

    seconds = min(_timed(lambda: supernet.run(given.plans, given.ids, visit)) for _ in range(ROUNDS))
    return [found[i] for i in range(PLANS)], PLANS * given.ids.numel() / seconds


def _timed(run: Callable[[], None]) -> float:
    """Wall time; the values that are read at the end wait for the device."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    return max(abs(a - b) / max(b, SMALLEST) for a, b in zip(found, wanted, strict=True))


@torch.inference_mode()
def _moments(given: Given, device: torch.device) -> float:
    """Largest difference of second moments between the devices, of the largest entry."""
    each = []
    for where in (device, torch.device("cpu")):
        adapter = given.on(where)
        stream = Stream(adapter, given.ids.numpy(), SEQUENCES)
        dense = adapter.weights(0, "attention")
        stream.advance(0, "attention", dense, dense)
        each.append(stream.moments(0, "ffn").second.cpu())
    return float((each[0] - each[1]).abs().max() / each[1].abs().max())
