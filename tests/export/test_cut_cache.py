"""Checkpoints whose KV caches throw tokens away: a fresh process decodes with them, and they hold no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from autoprune.errors import ExportError
from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.modeling.modeling_autoprune_cache import CutLayer
from autoprune.export.roundtrip import Reloaded, judge, reload
from autoprune.hardware.workload import Decode, Workload
from autoprune.kv_policy import held_values
from autoprune.models import adapter_for
from autoprune.space import Plan
from tests.caching import POLICIES, PROMPT, cut_plan, decoded, masked
from tests.families import VOCABULARY, model_of

NEW = 14
FAMILIES = {"llama": "tied", "gpt2": "tied"}
IDS = torch.randint(VOCABULARY, (2, PROMPT), generator=torch.Generator().manual_seed(7))
SCRIPT = """
import json, sys
sys.modules["autoprune"] = None
import torch
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    out = model.generate(
        torch.tensor(json.loads(sys.argv[1])), max_new_tokens=int(sys.argv[2]), min_new_tokens=int(sys.argv[2]),
        do_sample=False, pad_token_id=0, return_dict_in_generate=True,
    )
    parts = [[s, *getattr(s, "parts", ())] for s in out.past_key_values.layers]
    sizes = [sorted({(v.data_ptr(), v.untyped_storage().nbytes() // 4) for p in ps for v in vars(p).values()
        if isinstance(v, torch.Tensor) and v.is_floating_point()}) for ps in parts]
    found[folder] = {"ids": out.sequences.tolist(), "sizes": [[n for _, n in s] for s in sizes]}
print(json.dumps(found))
"""


def plan_of(adapter: Any, policy: str) -> Plan:
    """The middle block keeps everything."""
    settings = dict(POLICIES[policy])
    gene = next(n for n in ("kv_budget", "kv_full_groups", "kv_channels") if n in settings)
    settings["kv_full"] = {"kv_budget": 99, "kv_full_groups": adapter.shape.kv_groups, "kv_channels": 8}[gene]
    return cut_plan(adapter.shape, settings, {**settings, gene: settings["kv_full"]}, settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Any, Plan, Any, Path]]:
    """Adapter, plan, model and folder of every family and policy."""
    root, found = tmp_path_factory.mktemp("cut"), {}
    for name, variant in FAMILIES.items():
        adapter: Any = adapter_for(model_of(name, variant))
        for policy in POLICIES:
            plan = plan_of(adapter, policy)
            model = adapter.install(plan, lambda b, s, a=adapter: a.weights(b, s.kind), torch.float32)
            save_checkpoint(model, None, root / f"{name}-{policy}", "card", plan)
            found[name, policy] = (adapter, plan, model, root / f"{name}-{policy}")
    return found


@pytest.fixture(scope="module")
def generated(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one fresh process without autoprune generated, by folder."""
    folders = [str(folder) for *_, folder in saved.values()]
    command = [sys.executable, "-P", "-c", SCRIPT, json.dumps(IDS.tolist()), str(NEW), *folders]
    done = subprocess.run(command, cwd=tmp_path_factory.mktemp("away"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_generate_decodes_as_scored_and_holds_no_more(
    saved: Any, generated: dict[str, Any], name: str, policy: str
) -> None:
    adapter, plan, _, folder = saved[name, policy]
    found = generated[str(folder)]
    ids = torch.tensor(found["ids"])
    assert ids.shape == (2, PROMPT + NEW)
    expected = masked(adapter, plan, ids)[:, PROMPT - 1 : -1].argmax(-1)
    assert torch.equal(ids[:, PROMPT:], expected)
    seen, size = PROMPT + NEW - 1, adapter.shape.head_dim
    for block, sizes in enumerate(found["sizes"]):
        held = 2 * held_values(plan.at(block, "attention"), size, seen)
        scores = 2 * adapter.shape.kv_groups * 7 if policy == "accumulated" and block != 1 else 0
        assert sum(sizes) == held + scores, (block, sizes)
    assert sum(map(sum, found["sizes"])) < 3 * 2 * 2 * adapter.shape.kv_groups * size * seen


LONG = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def seen(saved: Any) -> dict[str, Reloaded]:
    """What one fresh process saw of each policy."""
    return dict(zip(POLICIES, reload([saved["llama", p][3] for p in POLICIES], LONG), strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_round_trip_proves_the_policy_too(saved: Any, seen: dict[str, Reloaded], policy: str) -> None:
    *_, model, folder = saved["llama", policy]
    count = sum(p.numel() for p in model.parameters())
    assert judge(model, folder, LONG, count, seen[policy]).cached_difference <= 1e-5
    other = next(p for p in POLICIES if p != policy)
    with pytest.raises(ExportError, match="logits with a cache differ"):
        judge(model, folder, LONG, count, seen[other])


def test_the_card_of_the_cache_is_in_the_config(saved: Any) -> None:
    *_, folder = saved["gpt2", "accumulated"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "autoprune_gpt2"
    kept = {"policy": "accumulated", "budget": 7, "recent": 3, "forgetting": 0.9}
    blocks = {int(k): v.get("kv_cache") for k, v in config["per_layer_config"].items()}
    assert blocks == {0: kept, 1: None, 2: kept} or blocks == {0: kept, 2: kept}
    assert {f"modeling_autoprune_{n}.py" for n in ("cache", "policies")} <= {f.name for f in folder.iterdir()}
    again = load_checkpoint(folder)
    assert isinstance(again(IDS, use_cache=True).past_key_values.layers[0], CutLayer)


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_of_a_cache_can_be_chosen_and_repeated(saved: Any, policy: str) -> None:
    *_, model, _ = saved["llama", policy]
    with torch.inference_mode():
        past = model(IDS, use_cache=True).past_key_values
        model(IDS[:, :1], past_key_values=past)
        past.batch_repeat_interleave(2)
        past.batch_select_indices(torch.tensor([3, 0]))
        found = model(IDS[:, 1:2].flip(0), past_key_values=past).logits
    expected = decoded(model, torch.cat((IDS, IDS[:, :2]), 1))[:, -1:].flip(0)
    assert torch.allclose(found, expected, atol=1e-5)
    past.reset()
    assert past.get_seq_length(0) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_can_be_taken_back_once_they_are_recorded(saved: Any, policy: str) -> None:
    *_, model, _ = saved["llama", policy]
    new = torch.randint(VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        past = model(IDS, use_cache=True).past_key_values
        past.activate_past_recording()
        model(new[:, :5], past_key_values=past)
        past.crop(-3)
        assert past.get_seq_length(0) == PROMPT + 2
        found = model(new[:, 5:], past_key_values=past).logits
    expected = decoded(model, torch.cat((IDS, new[:, [0, 1, 5]]), 1))[:, -1:]
    assert torch.allclose(found, expected, atol=1e-5)


def test_beams_carry_their_own_caches(saved: Any) -> None:
    *_, model, _ = saved["llama", "accumulated"]
    out = model.generate(IDS, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0)
    assert out.shape == (2, PROMPT + 6)


def test_what_it_cannot_do_is_refused(saved: Any) -> None:
    adapter, _, model, _ = saved["llama", "window"]
    padded = torch.ones_like(IDS)
    padded[0, 0] = 0
    with pytest.raises(ValueError, match="knows no padding"):
        model(IDS, attention_mask=padded, use_cache=True)
    used = adapter.model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="give it an empty cache"):
        model(IDS, past_key_values=used)
    past = model(IDS, past_key_values=DynamicCache(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="1 tokens to take back, 0 recorded"):
        past.crop(-1)


@pytest.mark.parametrize("policy", ["window", "accumulated"])
def test_long_prompts_are_read_in_parts(saved: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.export.modeling import modeling_autoprune_policies as caching

    *_, model, _ = saved["llama", policy]
    ids: Tensor = torch.randint(VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(2))
    whole = decoded(model, ids, 25)
    monkeypatch.setattr(caching, "QUERIES", 7)
    assert torch.allclose(decoded(model, ids, 25), whole, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_decoding_is_timed_step_by_step_and_again(saved: Any, policy: str) -> None:
    *_, model, _ = saved["llama", policy]
    timed = Decode(model, Workload(context=PROMPT, decode_steps=2, prefill_tokens=4))
    for _ in range(5):
        timed()
    assert timed.cache.get_seq_length(0) == PROMPT + 1
