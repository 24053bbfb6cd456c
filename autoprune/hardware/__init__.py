"""Measuring on this machine: its fingerprint, the timing discipline, the latency table, end-to-end times."""

from autoprune.hardware.endtoend import Measured, faster, measure_models
from autoprune.hardware.fingerprint import environment
from autoprune.hardware.table import LatencyTable, calibrate, measure_table, random_plans
from autoprune.hardware.workload import Workload

__all__ = [
    "LatencyTable",
    "Measured",
    "Workload",
    "calibrate",
    "environment",
    "faster",
    "measure_models",
    "measure_table",
    "random_plans",
]
