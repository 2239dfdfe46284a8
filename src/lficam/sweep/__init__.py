"""Variants x runs -> records, tables and figures: an experiment that goes on where it stopped."""

from lficam.sweep.panels import draw_panels
from lficam.sweep.plan import Sweep, read_sweep
from lficam.sweep.records import read_records
from lficam.sweep.running import records_lock, run_sweep
from lficam.sweep.summary import paired_interval, write_summary

__all__ = [
    "Sweep",
    "draw_panels",
    "paired_interval",
    "read_records",
    "read_sweep",
    "records_lock",
    "run_sweep",
    "write_summary",
]
