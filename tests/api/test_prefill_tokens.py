"""Runs that search prompt tokens, from settings to a checkpoint whose `generate` drops them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import autoprune
from autoprune.cli import main
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.space import Plan, token_keep

PROMPT, NEW = 24, 8
SCRIPT = """
import json, sys
sys.modules["autoprune"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
given = torch.tensor(json.loads(sys.argv[2]))
out = model.generate(given, max_new_tokens=int(sys.argv[3]), min_new_tokens=int(sys.argv[3]), do_sample=False,
    pad_token_id=0, return_dict_in_generate=True, output_logits=True)
print(json.dumps({"ids": out.sequences.tolist(), "logits": torch.stack(out.logits, 1).tolist()}))
"""


@pytest.fixture(scope="module", params=["true", "false"])
def run(given: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A finished run without latencies, joint with sizes; dropped tokens return or do not."""
    out: Path = tmp_path_factory.mktemp("prefill") / "run"
    chosen = ("space=[structured,prefill_tokens]", "latency.mode=off", "window=48", "constraints.flops=0.6x")
    given.search(out, *chosen, f"space.prefill_tokens.returning={request.param}", objectives=["kl", "flops"])
    return out


def test_generate_drops_tokens_and_equals_the_scores(run: Path, given: Any) -> None:
    rows = pd.read_csv(run / "leaderboard.csv")
    front = rows[rows["name"] == "front"]
    assert len(front) and (front["flops_ratio"] <= 0.6 + 1e-9).all()
    plan = Plan.from_json((run / "best" / "autoprune_plan.json").read_text())
    assert any(token_keep(plan.at(block, "attention")) for block in range(plan.blocks))
    loaded = autoprune.load(run / "best")
    assert loaded.config.drops()
    ids = torch.randint(256, (2, PROMPT), generator=torch.Generator().manual_seed(2))
    command = [sys.executable, "-c", SCRIPT, str(run / "best"), json.dumps(ids.tolist()), str(NEW)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sequence = torch.tensor(found["ids"])
    adapter: Any = adapter_for(load_model(str(given.model)).model)
    taken = written(adapter, loaded)
    state_logits = masked_of(adapter, plan, taken, sequence)
    assert (torch.tensor(found["logits"]) - state_logits[:, PROMPT - 1 : -1]).abs().max() <= 1e-4


def written(adapter: Any, model: Any) -> dict[tuple[int, str], Any]:
    """The weights of a checkpoint by block and kind."""
    rows = adapter._rows()
    kinds = {"attention": "self_attn", "ffn": "mlp"}
    return {
        (i, kind): adapter.layout.read(block.float(), kind, rows)
        for i, block in enumerate(model.model.layers)
        for kind, module in kinds.items()
        if getattr(block, module) is not None
    }


@torch.inference_mode()
def masked_of(adapter: Any, plan: Plan, weights: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the block stream with these weights."""
    adapter.prompt_len = PROMPT
    state = adapter.embed(ids)
    for at, sublayer in enumerate(plan.sublayers):
        if not sublayer.gone:
            state = adapter.run_sublayer(
                at // 2, sublayer.kind, state, weights[at // 2, sublayer.kind], sublayer
            )
    return adapter.head(state)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["space=[prefill_tokens]", "space.prefill_tokens.keep=[0,50]"],
            "must be whole numbers from 1 to 100",
        ),
        (
            ["space=[prefill_tokens]", "space.prefill_tokens.returning=maybe"],
            "space.prefill_tokens.returning=maybe must be true or false",
        ),
        (
            ["space=[kv_cache,prefill_tokens]", "space.prefill_tokens.returning=false"],
            "both say which tokens a step has in sight; leave one out",
        ),
        (["space=[kv_cache,prefill_tokens]"], "both say which tokens a step has in sight; leave one out"),
        (["space=[prefill_tokens]", "prompt_len=31"], "leaves nothing to score in windows of 32 tokens"),
        (["space=[prefill_tokens]", "evaluator=[divergence,sliding]"], "evaluator=sliding scores text"),
    ],
)
def test_mistakes_are_one_line(
    given: Any, tmp_path: Path, settings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given.line(tmp_path / "run", *settings)) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
