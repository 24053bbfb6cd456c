"""Run as a script in a fresh process: load checkpoints as a stranger would and write down their logits.

Usage: reload.py IDS.safetensors OUT FOLDER… ; writes OUT/<index>.safetensors with `full` [B, T, V] and
`cached` [B, 1 + steps, V] (the last prefilled position and the one-token steps after it); the number of
parameters and the module of the model's class are in the metadata. A classifier is called with all tensors of the
first file by name, and has no `cached`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 4  # at most so many tokens are decoded one by one


def main(ids_file: str, out: str, *folders: str) -> None:
    """Load and run every folder."""
    if not any(map(_in_int8, folders)):
        sys.modules["autoprune"] = None  # type: ignore[assignment]  # even where installed: importing it fails here
    from safetensors.torch import load_file

    given = load_file(ids_file)
    for index, folder in enumerate(folders):
        _run(folder, given, Path(out) / f"{index}.safetensors")


def _run(folder: str, given: dict[str, Tensor], to: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    if _in_int8(folder):  # nothing else reads it
        from autoprune.export.checkpoint import load_checkpoint

        model: Any = load_checkpoint(Path(folder), torch.float32)
    else:
        auto = getattr(transformers, _auto(folder))
        model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    model.eval()
    with torch.inference_mode():
        tensors = _decoded(model, given["ids"]) if "ids" in given else {"full": model(**given).logits}
    count = sum(parameter.numel() for parameter in model.parameters())
    facts = {"parameters": str(count), "module": type(model).__module__}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to, metadata=facts)


def _in_int8(folder: str) -> bool:
    return (Path(folder) / "int8").is_dir()


def _auto(folder: str) -> str:
    """Transformers' class that finds the model's, from the class that its config names."""
    (name,) = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"]
    kinds = [k for k in ("SequenceClassification", "ImageClassification") if f"For{k}" in name]
    return f"AutoModelFor{kinds[0] if kinds else 'CausalLM'}"


def _decoded(model: Any, ids: Tensor) -> dict[str, Tensor]:
    import torch

    start = ids.shape[1] - min(STEPS, ids.shape[1] - 1)
    with torch.inference_mode():
        full = model(ids, use_cache=False).logits
        output = model(ids[:, :start], use_cache=True)
        cached = [output.logits[:, -1:]]
        for position in range(start, ids.shape[1]):
            step = ids[:, position : position + 1]
            output = model(step, past_key_values=output.past_key_values, use_cache=True)
            cached.append(output.logits)
    return {"full": full, "cached": torch.cat(cached, 1)}


if __name__ == "__main__":
    main(*sys.argv[1:])
