"""Checkpoints run in fresh processes; a checkpoint that is not the model is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from autoprune.errors import ExportError
from autoprune.export.assemble import assemble
from autoprune.export.checkpoint import save_checkpoint
from autoprune.export.roundtrip import Reloaded, RoundTrip, judge, prove, reload
from autoprune.models import adapter_for
from autoprune.space import Plan

MIXED = Plan.of([(2, 48), (1, 20), (2, 0), (1, 48)])
HEADLESS = Plan.of([(0, 48), (2, 20), (1, 0), (2, 48)])
CASES: dict[str, tuple[Plan, Mapping[str, object], torch.dtype]] = {
    "mixed": (
        MIXED,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        torch.float32,
    ),
    "no attention in block 0": (HEADLESS, {}, torch.float32),
    "no attention": (Plan.of([(0, 48), (0, 20), (0, 0), (0, 3)]), {}, torch.float32),
    "nothing left": (Plan.of([(0, 0)] * 4), {}, torch.float32),
    "tied": (HEADLESS, {"tie_word_embeddings": True}, torch.float32),
    "biased": (MIXED, {"attention_bias": True, "mlp_bias": True}, torch.float32),
    "half precision": (MIXED, {}, torch.bfloat16),
    "equal": (Plan.of([(1, 20)] * 4), {}, torch.float32),
}


@dataclasses.dataclass
class Case:
    """One checkpoint on disk and what is expected of it."""

    model: PreTrainedModel
    folder: Path
    parameters: int
    seen: Reloaded | None = None


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, tiny: SimpleNamespace, ids: Tensor) -> dict[str, Case]:
    """All checkpoints, run in one fresh process."""
    root = tmp_path_factory.mktemp("check points")
    found = {}
    for name, (plan, settings, dtype) in CASES.items():
        model = tiny.dense(**settings)
        small = assemble(adapter_for(model), plan, tiny.weights(model), dtype)
        found[name] = Case(small, root / name, tiny.parameters(model, plan))
        save_checkpoint(small, None, root / name, "", plan)
    for case, seen in zip(found.values(), reload([c.folder for c in found.values()], ids), strict=True):
        case.seen = seen
    return found


def judged(case: Case, ids: Tensor, **changes: object) -> RoundTrip:
    assert case.seen is not None
    seen = dataclasses.replace(case.seen, **changes)
    return judge(case.model, case.folder, ids, case.parameters, seen)


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_sees_the_same_model(cases: dict[str, Case], ids: Tensor, name: str) -> None:
    trip = judged(cases[name], ids)
    assert trip.max_logit_difference <= 1e-5 and trip.cached_difference <= 1e-5
    assert trip.parameters == cases[name].parameters
    assert trip.expected_bytes == trip.parameters * (2 if name == "half precision" else 4)
    assert cases[name].seen.cached.shape[1] == 5  # a prefill and four steps
    origin = "transformers.models.llama" if name == "equal" else "transformers_modules."
    assert cases[name].seen.module.startswith(origin)  # the file in the checkpoint, not our own


def test_every_figure_is_checked(cases: dict[str, Case], ids: Tensor) -> None:
    case = cases["mixed"]
    assert case.seen is not None
    full, cached = case.seen.full, case.seen.cached
    with pytest.raises(ExportError, match=r"logits differ by 0\.000\d+, allowed 0\.0001"):
        judged(case, ids, full=full + 3e-4)
    with pytest.raises(ExportError, match="logits differ by nan"):
        judged(case, ids, full=full * math.nan)
    with pytest.raises(ExportError, match="logits differ by inf"):
        judged(case, ids, full=full[:, :, :-1])
    with pytest.raises(ExportError, match="logits with a cache differ"):
        judged(case, ids, cached=cached + 3e-3)
    with pytest.raises(ExportError, match=f"{case.parameters + 1} parameters, expected {case.parameters}"):
        judged(case, ids, parameters=case.parameters + 1)


def test_stray_weight_files_are_noticed(cases: dict[str, Case], ids: Tensor, tmp_path: Path) -> None:
    case = cases["mixed"]
    shutil.copytree(case.folder, tmp_path / "copy")
    save_file({"stray": torch.zeros(30_000)}, tmp_path / "copy/stray.safetensors")
    with pytest.raises(ExportError, match=r"weight files of \d+ bytes, expected \d+"):
        judge(case.model, tmp_path / "copy", ids, case.parameters, case.seen)


def test_the_model_judged_is_left_as_it_was(cases: dict[str, Case], ids: Tensor) -> None:
    case = copy.copy(cases["half precision"])
    judged(case, ids)
    assert case.model.dtype == torch.bfloat16


def test_one_changed_weight_on_disk_is_refused(cases: dict[str, Case], ids: Tensor, tmp_path: Path) -> None:
    case = cases["no attention in block 0"]
    folder = tmp_path / "copy"
    shutil.copytree(case.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=f"the round trip of {folder} failed: logits differ by"):
        prove(case.model, folder, ids, case.parameters)


def test_too_few_tokens_are_refused(cases: dict[str, Case], ids: Tensor) -> None:
    case = cases["mixed"]
    with pytest.raises(ExportError, match=r"at least 2\], not \[2, 1\]"):
        prove(case.model, case.folder, ids[:, :1], case.parameters)


LOADING = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    print("refused:", "trust_remote_code" in str(error))
assert "autoprune" not in sys.modules
from autoprune.export.checkpoint import register
register()
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
print(type(model).__module__, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))
model.save_pretrained(sys.argv[2])
print(sorted(file.name for file in Path(sys.argv[2]).glob("*.py")))
"""


def test_loads_without_trust_only_where_autoprune_is(cases: dict[str, Case], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    folder = str(cases["no attention in block 0"].folder)
    command = [sys.executable, "-c", LOADING, folder, str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "refused: True",
        "autoprune.export.modeling.modeling_autoprune_llama [] []",
        # whoever saves it again keeps it loadable for others
        str([f"modeling_autoprune{n}.py" for n in ("", "_cache", "_llama", "_policies", "_prompt")]),
    ]
