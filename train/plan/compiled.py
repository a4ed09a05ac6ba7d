"""Memory of a device by ahead-of-time compilation: the update itself, compiled for devices that need not be here."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import Mesh

from smart_jax.models import ModelConfig
from smart_jax.runtime import make_mesh
from train.config import TrainConfig
from train.optimizer import make_optimizer, make_schedule
from train.plan.abstract import STEPS, abstract_run
from train.plan.machines import HERE, Machine
from train.plan.memory import Memory, counted_bytes
from train.plan.shapes import BatchShape
from train.step import make_train_step

LIBTPU = 'pip install --no-deps --target DIR "libtpu==0.0.42.*"'
# The program never runs, so that little effort suffices.
OPTIONS: dict[str, dict[str, Any]] = {"tpu": {"exec_time_optimization_effort": -1.0}}
UPPER_BOUND = (
    "XLA's compiler for CPUs stands in for that of GPUs. It turns products of bfloat16 into products of float32, "
    "merges what is to be computed again with what was computed before, and takes attention by blocks instead of "
    "cuDNN's: its temporaries are an upper bound, and a loose one"
)


class Compiled(NamedTuple):
    """Memory of a device as a compiler counts it.

    Attributes:
      name: of the compiler.
      memory: bytes of a device; None = the program needs more than it has, `note` says how much.
      exact: whether it is the compiler of the run itself.
      note: what it does not know; or why there is no figure.

    Example:
      >>> Compiled("libtpu", Memory(1, 1, 1, 1), exact=True).note
      ''
    """

    name: str
    memory: Memory | None
    exact: bool
    note: str = ""


def compiler_of(machine: Machine) -> str:
    """Returns the compiler that is asked about a machine: "tpu" = libtpu's, "gpu" = this GPU's, "cpu" = XLA's for CPUs.

    Raises:
      ModuleNotFoundError: it is libtpu's, which is not installed; the message has the command.

    Example:
      >>> from train.plan.machines import machine
      >>> compiler_of(machine("h100x8"))
      'cpu'
    """
    if machine.name == HERE:
        return machine.platform
    if machine.platform != "tpu":
        return "cpu"
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"the compiler for {machine.name} is not installed; it needs no TPU: `{LIBTPU}`, and then the same command "
            "with PYTHONPATH=DIR. Without it, by arithmetic alone: --nocompile"
        )
    return "tpu"


def devices_of(machine: Machine) -> list[Any]:
    """Returns a machine's devices: those here, descriptions of chips, or virtual devices of this CPU.

    Raises:
      ModuleNotFoundError: as `compiler_of`.
      ValueError: there are too few virtual devices; the message names the flag.

    Example:
      >>> from train.plan.machines import machine
      >>> len(devices_of(machine("cpu")))
      1
    """
    if machine.name == HERE:
        return list(jax.devices())
    if compiler_of(machine) == "cpu":
        if len(jax.devices("cpu")) < machine.devices:
            raise ValueError(
                f"set XLA_FLAGS=--xla_force_host_platform_device_count={machine.devices} before jax starts"
            )
        return list(jax.devices("cpu")[: machine.devices])
    from jax.experimental import topologies

    # Of a slice below a host's four chips libtpu has to be told so.
    sides = [int(side) for side in machine.name.partition(":")[2].split("x")]
    few: dict[str, Any] = {"chips_per_host_bounds": [*sides, 1][:3]} if machine.devices < 4 else {}
    found = topologies.get_topology_desc(topology_name=machine.name, platform="tpu", **few)
    return list(found.devices)


def compiled(config: TrainConfig, model: ModelConfig, shape: BatchShape, machine: Machine) -> Compiled:
    """Compiles an update for a machine.

    Args:
      config: of the run, with dtype, mesh, remat and chunk chosen.
      model: its backbone's.
      shape: padded sizes of a batch.
      machine: where it is to run.

    Raises:
      ModuleNotFoundError, ValueError: as `devices_of`.

    Example:
      >>> from train.plan.machines import machine
      >>> from train.plan.shapes import model_config
      >>> config, shape = TrainConfig(model="tiny", batch_size=2), BatchShape(2, 2, 16, 16, 0)
      >>> found = compiled(config, model_config("tiny"), shape, machine("cpu"))
      >>> found.exact, found.memory.temporary > 0
      (True, True)
    """
    compiler = compiler_of(machine)
    name = {"tpu": "libtpu's compiler", "cpu": "XLA's compiler for CPUs"}.get(compiler, "this device's compiler")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp or 1, config.mesh.tensor, devices_of(machine))
    exact = compiler == machine.platform
    with _default_backend(compiler):
        lowered, counted = _lowered(config, model, shape, mesh, compiler)
        try:
            program = lowered.compile(OPTIONS.get(compiler))
        except jax.errors.JaxRuntimeError as error:
            if (needed := re.search(r"Used ([\d.]+[KMG]) of ([\d.]+[KMG])", str(error))) is None:
                raise
            return Compiled(name, None, exact, f"needs {needed[1]} of {needed[2]}")
    analysis = program.memory_analysis()
    assert analysis is not None
    temporary = analysis.temp_size_in_bytes
    return Compiled(name, counted._replace(temporary=temporary), exact, "" if exact else UPPER_BOUND)


def _lowered(
    config: TrainConfig, model: ModelConfig, shape: BatchShape, mesh: Mesh, compiler: str
) -> tuple[jax.stages.Lowered, Memory]:
    run = abstract_run(config, model, shape, mesh)
    optimizer = make_optimizer(config.optimizer, STEPS, config.accumulate)
    schedule = make_schedule(config.optimizer, STEPS // config.accumulate)
    step = cast(jax.stages.Wrapped, make_train_step(run.objective, optimizer, schedule, run.state))
    traced = step.trace(*run.arguments)
    return traced.lower(lowering_platforms=(compiler,)), counted_bytes(run)


@contextmanager
def _default_backend(name: str) -> Iterator[None]:
    """Enters a context in which the default backend is `name`: which kernels are taken follows from it."""
    true: Callable[[], str] = jax.default_backend
    jax.default_backend = lambda: name
    try:
        yield
    finally:
        jax.default_backend = true
