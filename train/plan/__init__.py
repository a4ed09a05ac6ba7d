"""Forecast of a run before it starts: memory by arithmetic and by a compiler, settings that fit, host and disk."""

from train.plan.abstract import AbstractRun, abstract_run, device_bytes
from train.plan.fit import Fit, advice, fit
from train.plan.machines import Machine, machine, this_machine
from train.plan.memory import Memory
from train.plan.planning import plan
from train.plan.report import Plan, as_json, as_row, as_text
from train.plan.shapes import QWEN3_VL_2B, QWEN3_VL_8B, BatchShape, batch_shape, model_config

__all__ = [
    "QWEN3_VL_2B",
    "QWEN3_VL_8B",
    "AbstractRun",
    "BatchShape",
    "Fit",
    "Machine",
    "Memory",
    "Plan",
    "abstract_run",
    "advice",
    "as_json",
    "as_row",
    "as_text",
    "batch_shape",
    "device_bytes",
    "fit",
    "machine",
    "model_config",
    "plan",
    "this_machine",
]
