"""What a built model costs: counted, measured, and where the platform has a counter, in joules."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from autoprune.errors import SettingError
from autoprune.evaluation import Context, Failure, Scores
from autoprune.forward import BuiltModel, Runner
from autoprune.hardware.energy import joules
from autoprune.hardware.memory import peak_bytes
from autoprune.objective import Split
from autoprune.shape import AnalyticCosts, Shape, decode_flops
from autoprune.space import Plan, plan_cost

COUNTED = ("params_nonzero", "disk_bytes", "flops_prefill", "flops_decode", "kv_bytes_context")
MEASURED = ("peak_bytes", "energy_joules")


class Cost:
    """What each finalist costs once it is built: `params_nonzero`, `disk_bytes`, FLOPs by phase, memory, energy.

    `disk_bytes` are those of its weight files, `flops_prefill` those of a prompt of `context` tokens, `flops_decode`
    those of one token after it, `kv_bytes_context` the cache then, `peak_bytes` the most bytes in tensors (weights
    included) while the prompt is read, `energy_joules` what that takes; left out where there is no counter (RAPL,
    NVML).

    context: tokens of the prompt.
    """

    metrics = (*COUNTED, *MEASURED)
    needs: Literal["model"] = "model"
    split: Literal[Split.TEST] = Split.TEST

    def __init__(self, context: int = 256) -> None:
        if context < 1:
            raise SettingError(f"evaluator.cost.context={context} must be at least 1")
        self._tokens = context
        self._shape: Shape | None = None

    def bind(self, context: Context) -> None:
        """Remember the sizes of the dense model."""
        self._shape = context.shape

    def price(self) -> int:
        """Tokens put through a model for one plan."""
        return 2 * self._tokens

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        """Costs of one built plan."""
        assert isinstance(runner, BuiltModel) and self._shape is not None, "bind() comes first"
        (plan,), model, shape = plans, runner.model, self._shape
        costs = plan_cost(plan, AnalyticCosts(shape, self._tokens))
        ids = torch.zeros((1, self._tokens), dtype=torch.long, device=model.device)

        def run() -> None:
            with torch.inference_mode():
                model(input_ids=ids, use_cache=False)

        found = {
            "params_nonzero": float(sum(int(torch.count_nonzero(p)) for p in model.parameters())),
            "disk_bytes": disk_bytes(model, getattr(torch, shape.dtype)),
            "flops_prefill": costs["flops"],
            "flops_decode": decode_flops(shape, plan, self._tokens),
            "kv_bytes_context": costs["kv_bytes"],
            "peak_bytes": peak_bytes(model, run),
        }
        energy = joules(run)
        return [Scores(found if energy is None else {**found, "energy_joules": energy}, {})]


def disk_bytes(model: Any, dtype: torch.dtype) -> float:
    """Bytes of the weight files in the checkpoint's dtype, written once to a temporary folder."""
    before = model.dtype
    with tempfile.TemporaryDirectory() as folder:
        model.to(dtype).save_pretrained(folder)
        model.to(before)
        return float(sum(f.stat().st_size for f in Path(folder).glob("*.safetensors")))
