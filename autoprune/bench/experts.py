"""`autoprune bench experts`: test KL of experts dropped alike in all blocks, and of counts searched per block.

All plans keep at most the same expert memory, use as many experts a token as the dense model, and keep all else.
`uniform` keeps equally many experts in every block, those that a criterion ranks first; searches share the ladders of
the criterion `activation` (router-weighted activation norm) and hand out the plan of lowest KL on *selection*. Seeds
are those of search and calibration windows. `lower by` is against the uniform plan of `activation` and the same seed,
mean over seeds; `kept` are the experts of each block, of the first seed. Runs are kept under `--work`: what is there
is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache

import numpy as np

from autoprune.api import resume, search
from autoprune.bench.table import count, parser, publish
from autoprune.bench.work import work_folder
from autoprune.config import compose
from autoprune.evaluation import Failure
from autoprune.export.checkpoint import PLAN_FILE
from autoprune.front import Front
from autoprune.ledger import FILE
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.objective import Split
from autoprune.progress import Progress
from autoprune.pruning.criteria.experts import EXPERT_CRITERIA
from autoprune.run.parts import held_out, open_parts
from autoprune.space import Plan
from autoprune.uniform import uniform_candidates

COLUMNS = ("experts", "criterion", "tokens", "seeds", "test KL", "spread", "lower by", "kept")
BASE = "activation"
Row = tuple[str, str, str]
Found = dict[Row, list[tuple[float, Plan]]]


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    found: Found = {}
    for criterion in EXPERT_CRITERIA:
        row = ("uniform", criterion, "0")
        found[row] = [_uniform(options, criterion, seed) for seed in range(options.seeds)]
    for method in options.methods.split(","):
        row = (method, BASE, f"{options.tokens:,.0f}")
        found[row] = [_searched(options, method, seed) for seed in range(options.seeds)]
    publish("experts", __doc__, args, _table(found), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("experts", __doc__)
    found.set_defaults(model="docs-moe")
    found.add_argument("--ratio", type=float, default=0.5, help="expert memory to dense")
    found.add_argument("--methods", default="auto", metavar="NAME,…", help="searches, by name")
    found.add_argument("--tokens", type=float, default=333e3, help="of a search")
    found.add_argument("--seeds", type=count, default=3, help="how many, from 0")
    found.add_argument("--work", default="results/bench-experts", help="where the runs are kept")
    return found.parse_args(list(args))


def _settings(options: argparse.Namespace, criterion: str, seed: int) -> list[str]:
    used = _per_token(options.model)
    return [
        *("latency.mode=off", "quiet=true", "evaluator=[divergence]", f"space.experts.per_token=[{used}]"),
        *(f"calibration.expert_criterion={criterion}", f"calibration.seed={seed}"),
    ]


@cache
def _per_token(model: str) -> int:
    return adapter_for(load_model(model).model).shape.experts_per_token


def _uniform(options: argparse.Namespace, criterion: str, seed: int) -> tuple[float, Plan]:
    words = [f"model={options.model}", f"data={options.data}", "space=[experts]"]
    with Progress(quiet=True) as progress:
        parts = open_parts(compose([*words, *_settings(options, criterion, seed)]), progress)
    space = parts.space(None)
    plan = space.decode(uniform_candidates(space, options.ratio, "expert_bytes")[0])
    outcome = parts.evaluation(parts.evaluators).evaluate(
        [plan], held_out(parts.cfg, parts.corpus, Split.TEST)
    )
    return (float("nan") if isinstance(outcome[0], Failure) else outcome[0].metrics["kl"]), plan


def _searched(options: argparse.Namespace, method: str, seed: int) -> tuple[float, Plan]:
    made = work_folder(options.work, options.model, options.data, options.tokens, options.ratio)
    folder = made / f"{method}-{seed}"
    if (folder / FILE).is_file() and not (folder / "best").is_dir():
        resume(folder)
    if not (folder / "best").is_dir():
        search(
            options.model,
            data=options.data,
            space="experts",
            search=method,
            objectives=("kl", "expert_bytes"),
            constraints={"expert_bytes": f"{options.ratio:g}x"},
            tokens=options.tokens,
            seed=seed,
            out=folder,
            settings=[*_settings(options, BASE, seed), "uniform=[0.6,0.5]"],
        )
    plan = Plan.from_json((folder / "best" / PLAN_FILE).read_text(encoding="utf-8"))
    return Front(folder).pick(key=plan.key).figures["kl_test"], plan


def _table(found: Found) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    base = np.array([kl for kl, _ in found["uniform", BASE, "0"]])
    for row, values in found.items():
        kls = np.array([kl for kl, _ in values])
        spread = float(kls.std(ddof=1)) if len(kls) > 1 else 0.0
        plan = values[0][1]
        kept = " ".join(str(plan.at(b, "ffn").get("experts")) for b in range(plan.blocks))
        cells = [*row, str(len(kls)), f"{kls.mean():.4f}", f"{spread:.4f}", f"{(1 - kls / base).mean():.1%}"]
        lines.append(f"| {' | '.join([*cells, kept])} |")
    return "\n".join(lines)
