"""Several processes that work as one: how they find each other, and what one of them does for all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Settings by which this process joins the others, see `initialize`.

    Attributes:
      enabled: whether it joins them; None = on TPU, whose machines tell jax of each other, and in a Slurm job's step of
        several tasks.
      coordinator: HOST:PORT of process 0, the same in every process; None, like the next two, where jax finds it out by
        itself: on TPU and Slurm.
      processes: number of processes.
      process: number of this one, from 0.

    Example:
      >>> DistributedConfig(coordinator="10.0.0.1:1234", processes=2, process=0).enabled is None
      True
    """

    enabled: bool | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes (`jax.distributed`), if the config says so; before anything asks jax for a device.

    Raises:
      ValueError: no cluster is found, or devices are in use already; the message names the settings.

    Example:
      >>> initialize(DistributedConfig(enabled=False))
    """
    enabled = "tpu" in _platforms().split(",") or _in_slurm_step() if config.enabled is None else config.enabled
    if not enabled or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (RuntimeError, TypeError, ValueError) as error:
        if config.enabled is None and not _in_slurm_step() and jax.process_count() == 1:
            return  # a TPU of one machine that nothing tells of others, such as a notebook's
        raise ValueError(
            f"this process cannot join others ({error}): set distributed.coordinator=HOST:PORT, distributed.processes "
            "and distributed.process where jax cannot find them out, or distributed.enabled=False for one process"
        ) from error


def _platforms() -> str:
    """Returns the platforms that jax will look for; on a machine with TPUs, importing it sets "tpu,cpu"."""
    return jax.config.jax_platforms or ""  # type: ignore[attr-defined]


def _in_slurm_step() -> bool:
    """Returns whether `srun` started this process beside others; the variables are those that jax looks at."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def is_main() -> bool:
    """Returns whether this is the process that prints and writes for all.

    Example:
      >>> is_main()
      True
    """
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with this name.

    Example:
      >>> wait_for_all("exported")
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def on_any(flag: bool) -> bool:
    """Returns whether the flag is set on any process; each must call it.

    Example:
      >>> on_any(False)
      False
    """
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def sum_over_processes(counts: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the sum of integers over the processes, each of which has to call it; int64.

    Example:
      >>> sum_over_processes([3, 5_000_000_000]).tolist()  # of a single process
      [3, 5000000000]
    """
    counts = np.asarray(counts, np.int64)
    if jax.process_count() == 1:
        return counts
    # jax would cut 64 bits to 32: high and low halves travel apart.
    halves = np.stack([counts >> 31, counts & (1 << 31) - 1]).astype(np.int32)
    high, low = np.asarray(multihost_utils.process_allgather(halves), np.int64).sum(axis=0)
    return np.asarray((high << 31) + low)
