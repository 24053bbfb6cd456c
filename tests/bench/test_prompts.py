"""Times of models that drop prompt tokens: the plan holds the shares, the table both phases."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from autoprune.bench.prompts import KEEP, describe, dropping, main
from autoprune.errors import SettingError
from autoprune.hardware.endtoend import Measured
from autoprune.models import adapter_for
from autoprune.space import PREFILL, PROMPT
from tests import tiny


@pytest.mark.parametrize("rule", [PREFILL, PROMPT])
def test_every_attention_hands_on_its_share(rule: str) -> None:
    adapter: Any = adapter_for(tiny.llama(blocks=3))
    plan = dropping(adapter, (100, 50, 10), rule)
    assert [plan.at(b, "attention").get(f"keep_{rule}") for b in range(3)] == [100, 50, 10]
    assert [plan.at(b, "ffn").get("width") for b in range(3)] == [tiny.FFN] * 3


def test_the_table_has_both_rules_and_phases() -> None:
    dense = Measured(10.0, 9.0, 11.0, 2.0, 1.9, 2.1)
    ratios = {"prefill_ratio": 0.6, "prefill_ratio_low": 0.58, "prefill_ratio_high": 0.62}
    ratios |= {"decode_ratio": 2.5, "decode_ratio_low": 2.4, "decode_ratio_high": 2.6}
    same = Measured(10.0, 9.0, 11.0, 2.0, 1.9, 2.1, *[1.0] * 6)
    cut = Measured(6.0, 5.8, 6.2, 5.0, 4.8, 5.2, **ratios)
    options = Namespace(keep=KEEP, hidden=768, ffn=2048, tokens=512)
    told = {"returning": {"flops": 0.61, "kv_bytes": 1.0}, "for good": {"flops": 0.61, "kv_bytes": 0.5}}
    text = describe(options, {"dense": dense, "returning": cut, "for good": same}, told)
    assert "| returning | prefill | 10.00 | 6.00 | 0.60x | 0.58 to 0.62 | 0.61x | 1.00x |" in text
    assert "| returning | decode | 2.00 | 5.00 | 2.50x | 2.40 to 2.60 |  | 1.00x |" in text
    assert "| for good | decode | 2.00 | 2.00 |" in text and "|  | 0.50x |" in text


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="--keep 0 must be from 1 to 100"):
        main(["--keep", "0", "50"])
