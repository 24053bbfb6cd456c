"""`autoprune bench streaming`: a batch of plans on a model larger than the memory it may use, against one in memory.

A random model is made (with `--experts` a mixture; `--model` names one that there is), and its ladders are built,
once. Then fresh processes take turns with the same batch of plans: one holds model and ladders in memory, another reads
them from disk with `stream=disk` and little room, and with `--host-mb` a third has as many blocks in memory as
`stream=auto` finds room for. *Peak* is the most memory that a process had beyond what it had before the model was
opened, pages of mapped files included; *throughput* is tokens of candidates a second, and its ratio that of rounds in
turns. All must find the same scores, bit by bit. Files are evicted from the system's cache before a round with
`--cold`, as far as the system allows it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.bench.table import parser, publish
from autoprune.objective import Fidelity, Split

WAYS = ("off", "disk", "auto")
MB = 1 << 20


def main(args: Sequence[str]) -> None:
    """Make the model, measure, compare, print and write the table."""
    options = _parse(args)
    if options.way:
        _serve(options)
        return
    with tempfile.TemporaryDirectory(prefix="autoprune-streaming-") as work:
        os.environ["AUTOPRUNE_CACHE"] = str(Path(work) / "cache")
        words = _words(options, Path(work))
        size = _prepare(words)
        told = _measured(words, options)
    text = table(options, size, told)
    publish("streaming", __doc__, args, text, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("streaming", __doc__, model=False)
    found.add_argument("--model", help="a built-in name or a folder in place of a random model")
    found.add_argument(
        "--experts", type=int, default=0, help="of each block, a quarter of them used; 0: no mixture"
    )
    found.add_argument("--hidden", type=int, default=512, help="of the model")
    found.add_argument("--blocks", type=int, default=16, help="of the model")
    found.add_argument("--plans", type=int, default=32, help="of the batch")
    found.add_argument("--windows", type=int, default=4, help="of 256 tokens")
    found.add_argument("--sequences", type=int, default=2, help="windows in a micro-batch")
    found.add_argument("--stream-mb", type=int, default=48, help="room for sublayers")
    found.add_argument("--memory-mb", type=int, default=96, help="room for states")
    found.add_argument("--host-mb", type=int, help="memory for weights of stream=auto")
    found.add_argument("--rounds", type=int, default=2, help="of the measurement")
    found.add_argument("--cold", action="store_true", help="read from the disk, not from the system's cache")
    found.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    found.add_argument("--words", help=argparse.SUPPRESS)
    return found.parse_args(list(args))


def _words(options: argparse.Namespace, folder: Path) -> list[str]:
    """The settings of a run on the model that is asked for."""
    if options.model is None:
        return make(folder, options.hidden, options.blocks, options.sequences, options.experts)
    from autoprune.models.load import blank_model

    mixture = getattr(blank_model(options.model).config, "num_experts_per_tok", 0)
    return [f"model={options.model}", "data=auto", *_small(options.sequences, mixture)]


def _small(sequences: int, experts: int) -> list[str]:
    """Settings that keep a run small, with a space that suits a mixture."""
    words = [f"sequences={sequences}", "calibration.tokens=1024", "calibration.ladder=nested"]
    space = ["space=[structured,experts]"] if experts else []
    return [*words, *space, "latency.mode=off", "quiet=true", "out=unused"]


def make(folder: Path, hidden: int, blocks: int, sequences: int, experts: int = 0) -> list[str]:
    """A random model and a text; the settings of a run on them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.utils import logging

    from autoprune.bench import small

    words = small.make(folder)
    logging.disable_progress_bar()
    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    used = max(1, experts // 4)
    routed: dict[str, Any] = {"num_experts": experts, "num_experts_per_tok": used, "norm_topk_prob": True}
    routed |= {"head_dim": 64, "moe_intermediate_size": hidden // 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any
        if experts:
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **routed))
        else:
            model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=4 * hidden))
        model.save_pretrained(folder / "model")
    named = [w for w in words if w.startswith(("model=", "data="))]
    return [*named, *_small(sequences, experts)]


def _prepare(words: Sequence[str]) -> int:
    """Build the ladders; bytes of the model's and the ladders' tensors."""
    from autoprune.pruning.ladders import PARTS

    parts = _opened(words)
    model = sum(p.nbytes for p in parts.loaded.model.parameters())
    return int(model + sum(f.stat().st_size for f in parts.ladder_folder.glob(PARTS)))


def _opened(words: Sequence[str]) -> Any:
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts

    with Progress(quiet=True) as progress:
        return open_parts(compose(list(words)), progress)


@dataclass(frozen=True)
class Told:
    """What one process said of each of its rounds."""

    seconds: list[float]
    thread: list[float]
    peak: int
    scores: str
    bytes_read: int
    waited: float
    resting: int


def _measured(words: Sequence[str], options: argparse.Namespace) -> dict[str, Told]:
    """All ways, each in a process of its own, a round of one after a round of the other."""
    ways = [way for way in WAYS if way != "auto" or options.host_mb]
    servers = {way: _server(way, words, options) for way in ways}
    for _ in range(options.rounds + 1):  # the first of each makes teachers
        for process in servers.values():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            if process.stdout.readline() != "done\n":
                raise RuntimeError(f"a process ended early, exit code {process.wait()}")
    found = {}
    for way, process in servers.items():
        said, _ = process.communicate("end\n")
        found[way] = Told(**json.loads(said))
    if len({told.scores for told in found.values()}) > 1:
        raise RuntimeError("the ways found different scores")
    return found


def _server(way: str, words: Sequence[str], options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autoprune", "bench", "streaming", f"--way={way}"]
    for name in ("plans", "windows", "stream_mb", "memory_mb"):
        command.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    command += [f"--host-mb={options.host_mb}"] if way == "auto" else []
    command += ["--words", json.dumps(list(words)), *(["--cold"] if options.cold else [])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve(options: argparse.Namespace) -> None:
    """One way: a round for every line that is read, and at the end what they took."""
    import torch
    import transformers  # noqa: F401 - what the process needs anyway is no part of its peak
    from transformers import LlamaForCausalLM  # noqa: F401

    from autoprune.models.mapped import resident

    torch.set_num_threads(1)
    before = resident()
    words = [*json.loads(options.words), f"stream={options.way}", f"stream_mb={options.stream_mb}"]
    words += [f"host_mb={options.host_mb}"] if options.host_mb else []
    parts = _opened([*words, f"memory_mb={options.memory_mb}"])
    evaluation = parts.evaluation(parts.evaluators[:1])
    plans = batch(parts, options.plans)
    fidelity = Fidelity(Split.FITNESS, (0, options.windows))
    seconds, thread, peak, scores = list[float](), list[float](), 0, ""
    for line in sys.stdin:
        if line != "go\n":
            break
        _reset_peak()
        if options.cold:
            _evict(parts)
        started = time.perf_counter(), time.thread_time()
        found = evaluation.evaluate(plans, fidelity)
        seconds.append(time.perf_counter() - started[0])
        thread.append(time.thread_time() - started[1])
        peak = resident("VmHWM") - before
        scores = sha256(b"".join(s.per_window["kl"].tobytes() for s in found)).hexdigest()
        print("done", flush=True)
    feed = getattr(parts.supernet, "feed", None)
    read, waited = (feed.bytes_read, feed.seconds_waited) if feed is not None else (0, 0.0)
    resting = len(parts.placement.at("device", parts.adapter.shape.blocks))
    print(json.dumps(Told(seconds[1:], thread[1:], peak, scores, read, waited, resting).__dict__))


def batch(parts: Any, count: int) -> list[Any]:
    """Level switches around one uniform plan: what an evolutionary search asks for."""
    space, rng = parts.space(None), np.random.default_rng(0)
    genes = space.genes
    middle = [len(g.options) // 2 for g in genes]
    found = []
    for _ in range(count):
        at = list(middle)
        for gene in rng.choice(len(genes), 4, replace=False):
            at[gene] = int(rng.integers(len(genes[gene].options)))
        found.append(space.decode(_candidate(genes, at)))
    return found


def _candidate(genes: Any, at: Sequence[int]) -> Any:
    from autoprune.space import Candidate

    return Candidate(tuple(int(i) for i in at))


def _reset_peak() -> None:
    """From now on the peak is counted anew, where the system can."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _evict(parts: Any) -> None:
    """Ask the system to forget what it holds of the files."""
    for folder in (Path(parts.loaded.source), *parts.cache.used):
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(options: argparse.Namespace, size: int, told: dict[str, Told]) -> str:
    """All ways, and what they were given."""
    tokens, rounds = options.plans * options.windows * 256, options.rounds + 1
    lines = [
        "| stream | blocks that rest | peak, MB | read a batch, MB | waited, s | tokens/s | throughput | thread time |"
    ]
    lines.append("|" + "---|" * 8)
    base = told["off"]
    for way, found in told.items():
        ratio = np.median([b / s for b, s in zip(base.seconds, found.seconds, strict=True)])
        thread = np.median([s / b for b, s in zip(base.thread, found.thread, strict=True)])
        read = [f"{found.bytes_read / rounds / MB:.0f}", f"{found.waited / rounds:.2f}"]
        cells = [way, str(found.resting), f"{found.peak / MB:.0f}", *read]
        cells += [f"{tokens / np.median(found.seconds):.0f}", f"{ratio:.3f}", f"{thread:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _given(options, size)])


def _given(options: argparse.Namespace, size: int) -> str:
    mixture = f" of {options.experts} experts" if options.experts else ""
    named = (
        f"{options.blocks} blocks{mixture}, {options.hidden} wide" if options.model is None else options.model
    )
    auto = f"; `auto` has {options.host_mb} MB for all weights" if options.host_mb else ""
    return (
        f"{named}: model and ladders are {size / MB:.0f} MB; allowed are {options.stream_mb} MB for sublayers and "
        f"{options.memory_mb} MB for states, {options.stream_mb + options.memory_mb} MB together{auto}. "
        f"{options.plans} plans on {options.windows} windows of 256 tokens, the same scores to the last bit"
        f"{'; files from disk' if options.cold else ''}."
    )
