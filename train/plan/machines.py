"""Machines that a run is planned for: how many devices, and how much memory of each a program may use."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import jax

GIB = 2**30
# Name, device_kind of jax, and GiB of a chip that a program may use: what libtpu's compiler (0.0.42) allows.
TPUS = {
    "v4": ("TPU v4", 30.75),
    "v5e": ("TPU v5 lite", 15.75),
    "v5p": ("TPU v5", 95.74),
    "v6e": ("TPU v6 lite", 31.25),
}
# The same of GPUs, with what their drivers report; jax takes a share of it, see `gpu_share`.
GPUS = {
    "t4": ("NVIDIA T4", 14.6),  # which computes in float32 alone: --config.dtype=float32
    "rtx4080": ("NVIDIA GeForce RTX 4080", 15.6),
    "l4": ("NVIDIA L4", 22.0),
    "a100-40g": ("NVIDIA A100-SXM4-40GB", 39.4),
    "a100": ("NVIDIA A100-SXM4-80GB", 79.3),
    "h100": ("NVIDIA H100 80GB HBM3", 79.2),
    "h200": ("NVIDIA H200", 139.8),
    "b200": ("NVIDIA B200", 178.0),
}
HERE = "this machine"
TPU_RUNTIME = 0.25  # GiB of a chip that the runtime takes of what the compiler allows


class Machine(NamedTuple):
    """The devices of a run.

    Attributes:
      name: as `machine` takes it.
      platform: "tpu", "gpu" or "cpu".
      kind: jax's `device_kind`, of which `train.monitor.peak_flops` knows the speed.
      devices: how many of them.
      memory: bytes of each that a program may use; None = not known, as of a CPU.

    Example:
      >>> machine("v5e:2x4").devices
      8
    """

    name: str
    platform: str
    kind: str
    devices: int
    memory: int | None


def machine(name: str) -> Machine:
    """Returns the machine of a name.

    Args:
      name: "KIND:AxB" or "KIND:AxBxC", a slice of TPUs (v4, v5e, v5p, v6e) by its chips along each axis; "KINDxN", so
        many GPUs (t4, rtx4080, l4, a100-40g, a100, h100, h200, b200); "cpu" or "cpuxN", where nothing is known of the
        memory.

    Raises:
      ValueError: the name is none of these.

    Example:
      >>> machine("h100x8").platform, machine("cpu").memory
      ('gpu', None)
    """
    if (match := re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)) and match[1] in TPUS:
        kind, gib = TPUS[match[1]]
        count = 1
        for side in match[2].split("x"):
            count *= int(side)
        return Machine(name, "tpu", kind, count, int((gib - TPU_RUNTIME) * GIB))
    if match := re.fullmatch(rf"({'|'.join(GPUS)})(?:x(\d+))?", name):
        kind, gib = GPUS[match[1]]
        return Machine(name, "gpu", kind, int(match[2] or 1), int(gpu_share() * gib * GIB))
    if match := re.fullmatch(r"cpu(?:x(\d+))?", name):
        return Machine(name, "cpu", "cpu", int(match[1] or 1), None)
    raise ValueError(
        f"machine '{name}' is unknown: give a slice of TPUs such as v5e:2x4, v5p:2x2x2 or v6e:2x4 ({', '.join(TPUS)}), "
        f"GPUs such as h100x8 ({', '.join(GPUS)}), or cpu"
    )


def this_machine() -> Machine:
    """Returns the machine of the devices that jax has here.

    Example:
      >>> this_machine().platform
      'cpu'
    """
    devices = jax.devices()
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return Machine(HERE, device.platform, device.device_kind, len(devices), limit)


def gpu_share() -> float:
    """Returns the share of a GPU's memory that jax takes when it starts.

    Example:
      >>> 0 < gpu_share() <= 1
      True
    """
    return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))
