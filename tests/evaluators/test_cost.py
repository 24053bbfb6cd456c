"""Costs of built models against torch's own counters and the process's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cache import Cache
from autoprune.evaluation import Context, Scores
from autoprune.forward import BuiltModel
from autoprune.hardware.energy import joules
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.nested import Nested  # noqa: F401
from autoprune.shape import AnalyticCosts, decode_flops
from autoprune.space import Plan, plan_cost
from evaluators.cost import Cost, disk_bytes
from tests import tiny
