"""How many bytes of text each token of a vocabulary stands for: what makes losses comparable over tokenizers."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor

from autoprune.errors import DataError


def token_bytes(tokenizer: Any, vocabulary: int) -> Tensor:
    """Bytes of each token id, fp64 [vocabulary]; special tokens and ids that the tokenizer does not use have none.

    Byte-level vocabularies hold one character a byte; others hold text with ▁ for a space, and <0xNN> for single
    bytes. A token for unknown characters counts none. Raises DataError for a tokenizer without a tokenizer.json.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError("bits_per_byte needs the bytes of each token: the model folder has no tokenizer.json")
    stored = json.loads(backend.to_str())
    byte_level = any('"ByteLevel"' in json.dumps(stored[part]) for part in ("decoder", "pre_tokenizer"))
    added = {a["id"]: 0 if a["special"] else len(a["content"].encode()) for a in stored["added_tokens"]}
    found = torch.zeros(vocabulary, dtype=torch.float64)
    for token, index in tokenizer.get_vocab().items():
        if index < vocabulary:
            found[index] = added.get(index, len(token) if byte_level else _length(token))
    return found


def _length(token: str) -> int:
    return 1 if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token) else len(token.replace("▁", " ").encode())
