"""`bench gpu` without a GPU: the checks run under Triton's interpreter, times are not made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from autoprune.kernels.linear import SparseLinear

from autoprune.bench import gpu
from autoprune.cli import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_checks_only(tmp_path: Any) -> None:
    to = tmp_path / "gpu.md"
    gpu.main(["--to", str(to)])
    table = to.read_text()
    assert "Not run on a GPU" in table and "| block stream, fp32 |" in table and "One token" not in table


def test_a_wrong_kernel_stops_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    monkeypatch.setattr(SparseLinear, "_on_gpu", lambda self, x: x.new_zeros(len(x), self.rows))
    assert main(["bench", "gpu", "--checks", "--to", str(tmp_path / "g.md")]) == 3
    assert "is off by" in capsys.readouterr().err and not (tmp_path / "g.md").exists()
