"""Proposals depend on seed and tells, not on the process that makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.searchers.methods import METHODS, digests


def test_a_fresh_process_with_other_hashes_proposes_the_same(root: Path) -> None:
    env = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.searchers.methods"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == digests()
    assert set(digests()) == set(METHODS) and len(set(digests().values())) == len(METHODS)
