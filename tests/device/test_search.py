"""`device`: all that a search computes runs where the model is, here on a made-up GPU: nothing is left on the CPU."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from autoprune.bench import gpu_search
from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.evaluation import Scores
from autoprune.models.mapped import Ranges
from autoprune.objective import Fidelity, Split
from autoprune.progress import Progress
from autoprune.pruning import feed
from autoprune.recovery.distill import Distill
from autoprune.run import inferred, remote
from autoprune.run import parts as run_parts
from autoprune.run.parts import Parts, open_parts
from autoprune.run.placement import Placement
from autoprune.run.recovery import check_recovery, recover, setting_of
from autoprune.space import ArrayGene, Candidate, Plan
from autoprune.streamed import StreamedSupernet
from autoprune.supernet import Supernet
from tests import families, tiny
from tests.made_up_gpu import GPU, made_up_gpu

WORDS = ("window=16", "sequences=4", "calibration.tokens=128", "latency.mode=off", "quiet=true", "out=unused")
FIDELITY = Fidelity(Split.FITNESS, (1, 6))  # two micro-batches, the last one short
PROXIES = (
    "activation_distance,agreement,bits_per_byte,block_influence,full_divergence,head_confidence,saliency"
)
CASES = {
    "refit": ("llama", f"evaluator=[divergence,perplexity,{PROXIES}]"),
    "nested": ("gpt2", "calibration.ladder=nested", "calibration.criterion=flap", "calibration.bias=true"),
    "reference": ("llama", "calibration.reference=owl@0.6", "calibration.criterion=random"),
    "sparsegpt": ("llama", "space=[sparsity]", "space.sparsity.pattern=4", "space.sparsity.matrices=[o,up]"),
    "gradients": (
        "llama",
        "space=[sparsity]",
        "space.sparsity.matrices=[o,up]",
        "calibration.mask=fisher",
        "calibration.criterion=llm_pruner",
    ),
    "heads": ("llama", "space=[heads]"),
    "streaming": ("llama", "space=[kv_cache]", "space.kv_cache.policy=streaming"),
    "accumulated": ("llama", "space=[kv_cache]", "space.kv_cache.policy=accumulated"),
    "prompt": ("llama", "space=[prefill_tokens]", "hidden=0.5x"),
    "experts": ("qwen3_moe", "space=[structured,experts]", "calibration.criterion=activation"),
    "merging": ("qwen3_moe", "space=[merging]"),
    "sentences": ("bert", "space=[structured,tokens]", "calibration.tokens=null"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("device")
    (found / "text.txt").write_text(tiny.text(20_000))
    for part, count in (("train", 80), ("valid", 20), ("test", 20)):
        lines = [f"{part} {i} {tiny.text()[i * 40 : i * 40 + i % 30]!r}\t{i % 5}" for i in range(count)]
        (found / f"{part}.tsv").write_text("\n".join(lines))
    return found


def model_of(name: str) -> Any:
    if name == "bert":
        return families.ENCODERS["bert"].make("padded", vocab_size=tiny.VOCABULARY)
    family = families.FAMILIES[name]
    layers = {"n_layer": 2} if name == "gpt2" else {"num_hidden_layers": 2}
    return family.make(next(iter(family.variants)), vocab_size=tiny.VOCABULARY, **layers)


def scores(model: Any, folder: Path, words: tuple[str, ...]) -> tuple[Parts, list[Any]]:
    made = tiny.save(model, folder / f"{model.config.model_type}")
    data = folder if model.config.model_type == "bert" else folder / "text.txt"
    cfg = compose([f"model={made}", f"data={data}", *WORDS, *words])
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
    return parts, parts.evaluation(parts.evaluators).evaluate(plans(parts), FIDELITY)


def plans(parts: Parts) -> list[Plan]:
    space, rng = parts.space(None), np.random.default_rng(0)
    found = [Candidate(tuple(value(gene, rng) for gene in space.genes)) for _ in range(2)]
    return [space.decode(c) for c in (space.dense, *found)]


def value(gene: Any, rng: np.random.Generator) -> Any:
    if isinstance(gene, ArrayGene):
        return tuple(rng.uniform(gene.low, gene.high, gene.shape).flatten().tolist())
    return int(rng.integers(len(gene.options)))


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_cpu(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, *words = CASES[case]
    model = model_of(name)
    if name == "qwen3_moe":  # transformers' own experts take long to load
        monkeypatch.setattr(run_parts, "check_stream", lambda *given: None)
    monkeypatch.setattr("autoprune.models.linear._ONEDNN", False)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cpu"))
    _, wanted = scores(model, folder, tuple(words))
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "gpu"))
    monkeypatch.setattr(run_parts, "device_of", lambda cfg: GPU)
    with made_up_gpu():
        parts, found = scores(model, folder, tuple(words))
        assert parts.adapter.weights(0, "ffn")["norm"].device == GPU
    for here, there in zip(found, wanted, strict=True):
        assert isinstance(here, Scores) and isinstance(there, Scores), (here, there)
        assert here.metrics == pytest.approx(there.metrics, rel=1e-4, abs=1e-6)


class Inline:
    """Reads ahead at once: the made-up GPU is one thread's."""

    def __init__(self, *named: Any) -> None:
        pass

    def submit(self, call: Any, *given: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*given))
        return done


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was pinned."""
    found: list[Any] = []
    monkeypatch.setattr(feed, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr("autoprune.pruning.ladders.pinned", lambda t: found.append(t) or t)
    monkeypatch.setattr(run_parts, "device_of", lambda cfg: GPU)
    return found


def test_fed_blocks_score_as_blocks_that_stay(folder: Path, inline: list[Any]) -> None:
    model, words = model_of("llama"), ("calibration.reference=uniform@0.5",)
    with made_up_gpu():
        held, wanted = scores(model, folder, (*words, "stream=off"))
        for way in ("host", "disk"):
            parts, found = scores(model, folder, (*words, f"stream={way}", "stream_mb=1"))
            for here, there in zip(found, wanted, strict=True):
                assert dict(here.metrics) == dict(there.metrics)
            _check_fed(parts)
        assert inline and not isinstance(held.supernet, StreamedSupernet)


def test_blocks_rest_on_the_gpu_in_memory_and_in_files(
    folder: Path, inline: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families.FAMILIES["llama"]
    model = family.make("tied", vocab_size=tiny.VOCABULARY, num_hidden_layers=6)
    monkeypatch.setattr(inferred, "MB", 1 << 10)
    bounds = ("stream=auto", "stream_mb=50", "device_mb=340", "host_mb=180")
    with made_up_gpu():
        _, wanted = scores(model, folder, ("stream=off",))
        parts, found = scores(model, folder, bounds)
        on, beside, in_files = (parts.placement.at(where, 6) for where in ("device", "host", "disk"))
        assert on and beside and in_files and max(on) < min(beside) <= max(beside) < min(in_files)
        assert "embeddings and head on madeup:0, blocks 0-" in parts.placement.told
        assert [dict(s.metrics) for s in found] == [dict(s.metrics) for s in wanted]
        net, ranges = parts.supernet, Ranges()
        assert isinstance(net, StreamedSupernet) and {key[0] for key in net.feed.reads} == beside | in_files
        for block in range(6):
            sources = {n: t for n, t in net.feed._sources[block, "ffn", 0].items() if n != "order"}
            assert {t.device == GPU for t in sources.values()} == {block in on}
            assert block in on or all(ranges.hold(t) for t in sources.values()), (
                "pinned ones are made up, too"
            )
            assert {t.device for t in parts.adapter.weights(block, "ffn").values()} == {GPU}
        dense: Any = parts.adapter.fed
        held = {
            b: all(ranges.hold(t) for t in dense._feed._sources[b, "ffn", 0].values())
            for b in beside | in_files
        }
        assert held == {b: b in in_files for b in beside | in_files}
        assert len(inline) == sum(len(net.feed._sources[k]) for k in net.feed.entries() if k[0] in beside)
        outside = {p.device for n, p in parts.loaded.model.named_parameters() if "layers." not in n}
        assert outside == {GPU}


def _check_fed(parts: Parts) -> None:
    """Blocks are in memory and come to the GPU, once for all plans of both micro-batches; the rest is there."""
    outside = {n: p.device for n, p in parts.loaded.model.named_parameters() if "layers." not in n}
    inside = {p.device.type for n, p in parts.loaded.model.named_parameters() if "layers." in n}
    assert set(outside.values()) == {GPU} and inside == {"cpu"}
    assert {t.device for t in parts.adapter.weights(1, "ffn").values()} == {GPU}
    supernet = parts.supernet
    assert isinstance(supernet, StreamedSupernet)
    assert supernet.feed.reads and set(supernet.feed.reads.values()) == {1}


def test_states_beyond_memory_wait_on_disk_and_come_back(folder: Path, inline: list[Any]) -> None:
    with made_up_gpu():
        parts, wanted = scores(model_of("llama"), folder, ("stream=host",))
        parts.supernet.memory_bytes = 1
        found = parts.evaluation(parts.evaluators).evaluate(plans(parts), FIDELITY)
    assert isinstance(parts.supernet, StreamedSupernet) and parts.supernet.spilled > 0
    assert [s.metrics for s in found if isinstance(s, Scores)] == [s.metrics for s in wanted]


def test_without_a_gpu_the_host_holds_the_ladders_as_usual(folder: Path) -> None:
    parts, _ = scores(model_of("llama"), folder, ("stream=host",))
    assert type(parts.supernet) is Supernet


def test_a_spec_names_the_device_of_the_workers(folder: Path) -> None:
    parts, _ = scores(model_of("llama"), folder, ())
    assert remote.spec_of(parts).settings["device"] == "cpu"
    OmegaConf.set_struct(parts.cfg, False)
    parts.cfg.device, parts.cfg.executor.gpus = "auto", 1
    assert remote.spec_of(parts).settings["device"] == "cuda"


def test_what_is_left_on_the_cpu_raises(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_parts, "device_of", lambda cfg: GPU)
    with made_up_gpu():
        parts, _ = scores(model_of("llama"), folder, ())
        weights = {n: t.cpu() for n, t in parts.adapter.weights(0, "ffn").items()}
        state = parts.adapter.embed(torch.zeros(1, 4, dtype=torch.long))
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            parts.adapter.run_sublayer(0, "ffn", state, weights)


def test_bench_gpu_compares_devices(monkeypatch: pytest.MonkeyPatch, inline: list[Any]) -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    monkeypatch.setattr(gpu_search, "SIZES", small)
    monkeypatch.setattr(gpu_search, "KEPT", {"kv_groups": (0, 2, 4), "width": (0, 16, 48)})
    monkeypatch.setattr(gpu_search, "TOKENS", 16)
    monkeypatch.setattr("autoprune.models.linear._ONEDNN", False)
    with made_up_gpu() as device:
        checks, lines = gpu_search.search_checks(device)
        assert [error <= allowed for _, error, allowed in checks] == [True] * 3
        assert sum("tokens/s" in line or "| GPU" in line for line in lines) == 3
        monkeypatch.setattr(gpu_search.Given, "on", _slightly_off(gpu_search.Given.on))
        checks, _ = gpu_search.search_checks(device)
        assert any(error > allowed for _, error, allowed in checks)


def _slightly_off(on: Any) -> Any:
    """Models whose norm is another one on the GPU."""

    def made(given: Any, device: torch.device) -> Any:
        adapter = on(given, device)
        adapter._eps = 1e-1 if device == GPU else adapter._eps
        return adapter

    return made


def test_recovery_trains_there(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("recovery=distill", "selection_windows=4", "test_windows=4")
    settings = Distill(steps=4, batch=2, precision="fp32", check_every=2, save_every=2)

    def recovered(to: Path) -> Any:
        parts, _ = scores(model_of("llama"), folder, words)
        setting, plan = setting_of(parts, settings), plans(parts)[1]
        with Progress(quiet=True) as progress:
            student = parts.build(plan, dtype=torch.float32)
            return parts, recover(student, torch.float32, setting, to, progress)

    monkeypatch.setattr("autoprune.models.linear._ONEDNN", False)
    _, wanted = recovered(tmp_path / "cpu")
    monkeypatch.setattr(run_parts, "device_of", lambda cfg: GPU)
    with made_up_gpu():
        parts, found = recovered(tmp_path / "gpu")
        again = recovered(tmp_path / "gpu")[1]  # from the state that was saved
    assert found.after == pytest.approx(dict(wanted.after), rel=1e-4)
    assert again.after == pytest.approx(dict(found.after), rel=1e-6)
    parts = replace(parts, placement=Placement(0, "host"))
    with made_up_gpu(), pytest.raises(SettingError, match="recovery=distill runs the whole dense model"):
        check_recovery(parts)
