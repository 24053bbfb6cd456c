"""Measuring on this machine: its fingerprint, the timing discipline, the latency table, end-to-end times."""

from autoprune.hardware.designs import random_plans
from autoprune.hardware.endtoend import Measured, faster, measure_models
from autoprune.hardware.fingerprint import environment
from autoprune.hardware.measuring import measure_table
from autoprune.hardware.table import LatencyTable
from autoprune.hardware.workload import Workload

__all__ = [
    "LatencyTable",
    "Measured",
    "Workload",
    "environment",
    "faster",
    "measure_models",
    "measure_table",
    "random_plans",
]
