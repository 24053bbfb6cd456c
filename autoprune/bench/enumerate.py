"""`autoprune bench enumerate`: every plan of docs-llama's last four blocks, measured once for tests of searchers.

Writes the file that `autoprune.searchers.enumerated` reads; `autoprune bench tabular` compares methods on it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.bench.table import parser
from autoprune.evaluation import Failure
from autoprune.objective import Fidelity, Split
from autoprune.run.parts import objectives, open_parts, search_evaluators
from autoprune.searchers import enumerated
from autoprune.space import Plan

MODEL, BLOCKS, WINDOW, WINDOWS = "docs-llama", 4, 64, 16
KV_GROUPS, WIDTHS = (0, 2, 3), (0, 128, 256)


def main(args: Sequence[str]) -> None:
    """Measure and write."""
    given = parser("enumerate", __doc__, model=False)
    given.set_defaults(to=str(Path(enumerated.__file__).with_name(enumerated.FILE)))
    options = given.parse_args(list(args))
    from autoprune.config import compose
    from autoprune.progress import Progress

    cfg = compose(
        [f"model={MODEL}", "data=auto", f"window={WINDOW}", f"sequences={WINDOWS}", "latency.mode=off"]
    )
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
    evaluation = parts.evaluation(
        search_evaluators(parts, objectives(cfg, parts.space(None), parts.evaluators))
    )
    rows = []
    for number, plans in enumerate(_plans(parts.adapter.shape.blocks)):
        scores = evaluation.evaluate(plans, Fidelity(Split.FITNESS, (0, WINDOWS)))
        for score in scores:
            if isinstance(score, Failure):
                raise RuntimeError(score.reason)
            rows.append(score.per_window["kl"])
        print(f"{number + 1} of {len(KV_GROUPS) * len(WIDTHS)} parts", flush=True)
    shape = dataclasses.asdict(dataclasses.replace(parts.adapter.shape, blocks=BLOCKS, windows=()))
    about = {
        **{"made_by": "autoprune bench enumerate", "model": MODEL, **parts.digests},
        **{"shape": shape, "window": WINDOW, "kv_groups": KV_GROUPS, "widths": WIDTHS},
    }
    target = Path(options.to)
    with target.open("wb") as file:
        np.savez_compressed(file, kl=np.array(rows, dtype=np.float16), about=np.array(json.dumps(about)))
    print(f"{len(rows)} plans, {target.stat().st_size} bytes in {target}")


def _plans(blocks: int) -> Iterator[list[Plan]]:
    """All plans in the table's order, in parts that share their first two varied sublayers."""
    kept: list[Any] = [(KV_GROUPS[-1], WIDTHS[-1])] * (blocks - BLOCKS)
    pairs = list(itertools.product(KV_GROUPS, WIDTHS))
    for first in pairs:
        rest = itertools.product(pairs, repeat=BLOCKS - 1)
        yield [Plan.of([*kept, first, *others]) for others in rest]
