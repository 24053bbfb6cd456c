"""A chosen plan refit once more, and whether that helped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoprune.errors import SettingError
from autoprune.evaluation import Failure
from autoprune.objective import Split
from autoprune.pruning.build import criterion_gradients
from autoprune.pruning.refit import FixedWeights, refit_plan
from autoprune.run.parts import held_out
from autoprune.space import Plan
from autoprune.supernet import Ladders, Supernet

if TYPE_CHECKING:
    from autoprune.run.pipeline import Run


@dataclass(frozen=True)
class Refit:
    """The weights to export, and the quality they were chosen by; `kept` is False when the ladder's own were better."""

    ladders: Ladders
    kept: bool
    before: float  # KL on *selection* with the ladder's weights
    after: float
    metrics: dict[str, float]  # of the chosen weights on *test*

    def figures(self) -> dict[str, float]:
        """For the model card, on *test*."""
        return {f"{m}_test": v for m, v in self.metrics.items() if m in ("kl", "perplexity")}

    def told(self) -> str:
        """What happened, in one line."""
        if self.after == self.before:
            return f"refit: nothing left to solve (KL on selection {self.before:.4f})"
        change = f"KL on selection {self.before:.4f} -> {self.after:.4f}"
        return (
            f"refit: {change}" if self.kept else f"refit did not help ({change}); the ladder's weights stay"
        )


def refit_chosen(run: Run, plan: Plan) -> Refit:
    """Refit `plan` in its own company and keep whichever weights are better on *selection*.

    Raises SettingError when no evaluator measures KL.
    """
    if "kl" not in {m for e in run.parts.evaluators for m in e.metrics}:
        raise SettingError("export.refit=true chooses by kl; add divergence to evaluator=[…]")
    if plan != plan.unmasked:
        raise SettingError("export.refit=true solves whole matrices; this plan has masks: leave refit out")
    before = _score(run, run.parts.ladders, plan, Split.SELECTION)["kl"]
    fixed: Ladders = FixedWeights({})
    after, solved = before, run.parts.recipe
    already = solved.follow and solved.reference == plan  # its ladders are the answer for this very plan
    if not already and not all(s.gone for s in plan.sublayers):
        parts = run.parts
        gradients = criterion_gradients(parts.adapter, parts.loaded.digest, parts.recipe, parts.cache)
        fixed = refit_plan(parts.adapter, plan, parts.recipe, gradients)
        after = _score(run, fixed, plan, Split.SELECTION)["kl"]
    kept = after < before
    chosen = fixed if kept else run.parts.ladders
    return Refit(chosen, kept, before, after, _score(run, chosen, plan, Split.TEST))


def _score(run: Run, ladders: Ladders, plan: Plan, split: Split) -> dict[str, float]:
    parts, fidelity = run.parts, held_out(run.cfg, run.parts.corpus, split)
    supernet = Supernet(parts.adapter, ladders, int(run.cfg.memory_mb) << 20)
    outcome = parts.evaluation(parts.evaluators, supernet).evaluate([plan], fidelity)[0]
    if isinstance(outcome, Failure):
        return {"kl": float("inf")}
    return dict(outcome.metrics)
