"""`device`: all that a search computes runs where the model is, on a GPU that is made up: nothing is left on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.config import compose
from autoprune.evaluation import Scores
from autoprune.objective import Fidelity, Split
from autoprune.progress import Progress
from autoprune.run import parts as run_parts
from autoprune.run.parts import Parts, open_parts
from autoprune.space import ArrayGene, Candidate, Plan
from tests import families, tiny
from tests.made_up_gpu import GPU, made_up_gpu

WORDS = ("window=16", "sequences=4", "calibration.tokens=128", "latency.mode=off", "quiet=true", "out=unused")
FIDELITY = Fidelity(Split.FITNESS, (1, 7))  # two micro-batches, the last one short
PROXIES = "activation_distance,agreement,bits_per_byte,block_influence,full_divergence,gradient_norm,head_confidence,saliency"
CASES = {
    "refit": ("llama",),
    "nested": ("gpt2", "calibration.ladder=nested", "calibration.criterion=flap", "calibration.bias=true"),
    "gradients": ("llama", "calibration.criterion=llm_pruner"),
    "fisher": ("llama", "calibration.criterion=fisher"),
    "taylor": ("llama", "calibration.criterion=taylor"),
    "nirvana": ("llama", "calibration.criterion=nirvana"),
    "activation": ("llama", "calibration.criterion=activation"),
    "random": ("llama", "calibration.criterion=random"),
    "reference": ("llama", "calibration.reference=owl@0.6", "calibration.criterion=magnitude"),
    "proxies": ("llama", f"evaluator=[divergence,perplexity,{PROXIES}]"),
    "sparsegpt": ("llama", "space=[structured,sparsity]"),
    "wanda": ("llama", "space=[structured,sparsity]", "calibration.mask=wanda"),
    "mask gradients": ("llama", "space=[structured,sparsity]", "calibration.mask=fisher"),
    "heads": ("llama", "space=[heads]"),
    "cache": ("llama", "space=[kv_cache]"),
    "streaming": ("llama", "space=[kv_cache]", "space.kv_cache.policy=streaming"),
    "accumulated": ("llama", "space=[kv_cache]", "space.kv_cache.policy=accumulated"),
    "prompt": ("llama", "space=[prefill_tokens]"),
    "hidden": ("llama", "hidden=0.5x"),
    "experts": ("qwen3_moe", "space=[structured,experts]"),
    "merging": ("qwen3_moe", "space=[merging]"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("device")
    (found / "text.txt").write_text(tiny.text(20_000))
    return found


def scores(model: Any, folder: Path, words: tuple[str, ...]) -> tuple[Parts, list[Any]]:
    made = tiny.save(model, folder / f"{model.config.model_type}")
    cfg = compose([f"model={made}", f"data={folder / 'text.txt'}", *WORDS, *words])
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
    return parts, parts.evaluation(parts.evaluators).evaluate(plans(parts), FIDELITY)


def plans(parts: Parts) -> list[Plan]:
    space, rng = parts.space(None), np.random.default_rng(0)
    found = [Candidate(tuple(value(gene, rng) for gene in space.genes)) for _ in range(3)]
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
    model = families.FAMILIES[name].make(next(iter(families.FAMILIES[name].variants)), vocab_size=256)
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
