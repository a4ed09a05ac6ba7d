"""Forecast of what a run takes on a machine, put together."""

from __future__ import annotations

from train.config import TrainConfig
from train.plan.abstract import abstract_run
from train.plan.compiled import compiled
from train.plan.fit import advice, computed_on, fit
from train.plan.host import host
from train.plan.machines import Machine
from train.plan.memory import device_mesh, forecast
from train.plan.report import Plan
from train.plan.shapes import batch_shape, model_config


def plan(config: TrainConfig, machine: Machine, *, name: str = "", compile: bool = True) -> Plan:
    """Forecasts a run: its memory by arithmetic and by a compiler, its steps, and what it asks of the host.

    Args:
      config: of the run.
      machine: where it is to run.
      name: of the config, for the report.
      compile: whether a compiler is asked, which takes minutes for a large model.

    Raises:
      ModuleNotFoundError: libtpu is needed and not installed; the message has the command.
      ValueError, FileNotFoundError, ConnectionError: the settings do not fit the model, or this cannot be had.

    Example:
      >>> from train.plan.machines import machine
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512)
      >>> plan(config, machine("v5p:2x2x2"), compile=False).fits
      True
    """
    model = model_config(config.model)
    shape = batch_shape(config, model)
    found = fit(config, machine, model, shape)
    chosen = computed_on(found.config, machine)
    memory = forecast(chosen, model, shape, machine.devices, machine.platform)
    run = abstract_run(chosen, model, shape, device_mesh(chosen, machine.devices))
    asked = compiled(chosen, model, shape, machine) if compile else None
    result = Plan(name, machine, shape, found, memory, asked, host(chosen, model, shape, run, machine), None)
    if result.fits is not False:
        return result
    return result._replace(advice=advice(config, machine, model, shape))
