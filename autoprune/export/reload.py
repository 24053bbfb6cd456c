"""Run as a script in a fresh process: load checkpoints as a stranger would and write down their logits.

Usage: reload.py IDS.safetensors OUT FOLDER… ; writes OUT/<index>.safetensors with `full` [B, T, V] and
`cached` [B, 1 + steps, V] (the last prefilled position and the one-token steps after it); the number of
parameters and the module of the model's class are in the metadata.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 4  # at most so many tokens are decoded one by one


def main(ids_file: str, out: str, *folders: str) -> None:
    """Load and run every folder."""
    sys.modules["autoprune"] = None  # type: ignore[assignment]  # even where installed: importing it fails here
    from safetensors.torch import load_file

    ids = load_file(ids_file)["ids"]
    for index, folder in enumerate(folders):
        _run(folder, ids, Path(out) / f"{index}.safetensors")


def _run(folder: str, ids: Tensor, to: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    model.eval()
    start = ids.shape[1] - min(STEPS, ids.shape[1] - 1)
    with torch.inference_mode():
        full = model(ids, use_cache=False).logits
        output = model(ids[:, :start], use_cache=True)
        cached = [output.logits[:, -1:]]
        for position in range(start, ids.shape[1]):
            step = ids[:, position : position + 1]
            output = model(step, past_key_values=output.past_key_values, use_cache=True)
            cached.append(output.logits)
    count = sum(parameter.numel() for parameter in model.parameters())
    tensors = {"full": full.contiguous(), "cached": torch.cat(cached, 1)}
    save_file(tensors, to, metadata={"parameters": str(count), "module": type(model).__module__})


if __name__ == "__main__":
    main(*sys.argv[1:])
