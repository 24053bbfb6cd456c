"""The model card that travels with a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from autoprune.merging import MERGE
from autoprune.space import KINDS, Plan, is_mask

_SPLITS = ("calibration", "fitness", "selection", "test", "train")
_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForImageClassification": "image-classification",
}
_MODEL_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TITLES = {"kv_groups": "KV groups", "width": "FFN width"}
_TITLES |= {"experts": "experts", "experts_per_token": "experts per token", MERGE: "merged"}
_MIXED = """\
Blocks differ in size, so the modelling file `modeling_autoprune_FAMILY.py` travels with the weights; it needs
transformers >= 5.15 and your consent to run it:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
```

Where autoprune is installed, no remote code is needed:

```python
from pathlib import Path

from autoprune.export.checkpoint import load_checkpoint

model = load_checkpoint(Path(FOLDER))
```"""
_PLAIN = """\
All blocks are alike, so this is a plain FAMILY checkpoint:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(FOLDER)
```"""

_INT8 = """\
The weights stand in `int8/model.safetensors`, which only autoprune reads (other loaders find no weights and say so):

```python
import autoprune

model = autoprune.load(FOLDER)
```"""


def model_card(
    *,
    source: str,
    plan: Plan,
    figures: Mapping[str, float],
    command: str,
    family: str,
    heterogeneous: bool,
    recovered: str = "",
    masked: str = "",
    int8: str = "",
    auto: str = "AutoModelForCausalLM",
) -> str:
    """Markdown with a YAML header; `figures` may name the split they were taken on, e.g. `kl_test`.

    `recovered` says how the weights were trained after the plan was built, `masked` how masked matrices are stored,
    `int8` that linear maps are rounded; `auto` is transformers' class that loads the checkpoint.
    """
    parts = [
        _header(source, auto),
        f"# {_short(source)}, compressed by autoprune",
        f"A structurally smaller version of `{_short(source)}`: what is not listed below is physically gone.",
        "## What was kept",
        _kept(plan),
    ]
    if masked:
        parts += ["## Masks", masked]
    if int8:
        parts += ["## int8", int8]
    if figures:
        parts += ["## Figures", _figures(figures)]
    if recovered:
        parts += ["## Recovered", recovered]
    loading = (_INT8 if int8 else _MIXED if heterogeneous else _PLAIN).replace("FAMILY", family)
    parts += ["## How to load it", loading.replace("AutoModelForCausalLM", auto)]
    parts += ["## How it was made", f"```sh\n{command.strip()}\n```"]
    parts.append(f"The exact plan (key `{plan.key}`) is in `autoprune_plan.json`.")
    return "\n\n".join(parts) + "\n"


def masks_section(matrices: int, dense: int, packed: int) -> str:
    """What there is to know of masked matrices: their number, and their bytes as they stand and packed."""
    return (
        f"{matrices} matrices are masked: `MATRIX.PATTERN` above says how many per cent, or N of M inputs, are kept. "
        f"`model.safetensors` holds them whole, with zeros in place ({dense:,} bytes), so any loader can run them. "
        f"`packed/masked.safetensors` holds the same matrices packed ({packed:,} bytes, index included); "
        "`autoprune.export.packed.load_packed` reads them, `to_dense()` gives them back bit for bit.\n\n"
        "`autoprune.load(FOLDER)` runs them packed where a kernel is faster on the machine at hand than the dense "
        "product; under other loaders this model runs as fast as one without masks. Ratios of bytes, parameters and "
        "FLOPs count what is kept (bytes: packed, where that is smaller), latencies are those measured."
    )


def int8_section(matrices: int, before: int, after: int) -> str:
    """What there is to know of linear maps in int8: their number, and their bytes before and after."""
    return (
        f"{matrices} linear maps, all of those inside blocks, are stored in int8 with a scale a row ({after:,} bytes, "
        f"{before:,} before). `autoprune.load(FOLDER)` runs them in int8, each token rounded to 8 bits too, where that "
        "is faster on the machine at hand, and spread out elsewhere. Figures named `int8` are those of all of them in "
        "int8, tokens included."
    )


def _header(source: str, auto: str) -> str:
    """A path is no model id, and hubs refuse it as `base_model`."""
    lines = ["---", "library_name: transformers", f"pipeline_tag: {_TASKS[auto]}"]
    if _MODEL_ID.fullmatch(source):
        lines.append(f"base_model: {json.dumps(source)}")
    return "\n".join([*lines, "tags:", "- autoprune", "- pruning", "---"])


def _short(source: str) -> str:
    """A model id as it is, of a path the last part."""
    return source if _MODEL_ID.fullmatch(source) else source.rstrip("/").rsplit("/", 1)[-1]


def _kept(plan: Plan) -> str:
    """One row per run of equal blocks."""
    names = {(s.kind, name) for s in plan.sublayers for name, _ in s.settings}
    columns = sorted(names, key=lambda column: (KINDS.index(column[0]), is_mask(column[1]), column[1]))
    rows: list[tuple[int, int, list[str]]] = []
    for block in range(plan.blocks):
        cells = [_cell(name, dict(plan.at(block, kind).settings).get(name, "")) for kind, name in columns]
        if rows and rows[-1][2] == cells:
            rows[-1] = (rows[-1][0], block, cells)
        else:
            rows.append((block, block, cells))
    spans = [[str(first) if first == last else f"{first}–{last}", *cells] for first, last, cells in rows]
    return _table(["Block", *(_TITLES.get(name, name) for _, name in columns)], spans)


def _cell(name: str, value: object) -> str:
    if name == MERGE:
        return "of all" if value else ""
    if is_mask(name):
        return str(value) if value else ""  # of a sublayer that is gone
    return "gone" if name in _TITLES and value == 0 else str(value)


def _figures(figures: Mapping[str, float]) -> str:
    """The split, where the name ends in one, gets its own column."""
    rows = []
    for name, value in figures.items():
        head, _, tail = name.rpartition("_")
        figure, split = (head, tail) if head and tail in _SPLITS else (name, "–")
        rows.append([figure.replace("_", " "), f"{value:.4g}", split])
    return _table(["Figure", "Value", "Measured on split"], rows) + "\n\nRatios are to the dense model."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
