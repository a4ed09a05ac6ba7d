"""Mesh, rematerialisation and chunk that fit the devices' memory, where a config leaves them to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from smart_jax.models import ModelConfig
from train.config import TrainConfig
from train.plan.machines import GIB, Machine
from train.plan.memory import Memory, device_mesh, forecast
from train.plan.shapes import BatchShape, batch_shape, model_config

SPARE = 0.1  # of a device's memory, which is left free where settings are chosen
POSITIONS = (
    2**16
)  # patches, or tokens, that pass a device's backbone at a time: more are no faster, since these fill it


class Fit(NamedTuple):
    """Settings of a run on a machine, and what they take.

    Attributes:
      config: with mesh, remat and chunk chosen.
      memory: of a device; None = it was not counted, since the devices' memory is not known.
      limit: bytes of a device that a program may use; None = not known.

    Example:
      >>> Fit(TrainConfig(), Memory(1, 1, 1, 1), limit=3).fits
      False
    """

    config: TrainConfig
    memory: Memory | None
    limit: int | None

    @property
    def fits(self) -> bool:
        """Whether a device's memory suffices, as far as is known."""
        return self.memory is None or self.limit is None or self.memory.total <= self.limit

    def describe(self) -> str:
        """Returns the settings and the forecast in a line."""
        text = settings(self.config)
        if self.memory is None or self.limit is None:
            return text
        return f"{text}: {self.memory.total / GIB:.1f} of {self.limit / GIB:.1f} GiB of a device"


def settings(config: TrainConfig) -> str:
    """Returns mesh, remat and chunk as they are given on the command line.

    Example:
      >>> settings(TrainConfig(remat=True, chunk_size=64))
      '--config.mesh.fsdp=1 --config.remat=True --config.chunk_size=64'
    """
    chunk = "" if config.chunk_size is None else f" --config.chunk_size={config.chunk_size}"
    return f"--config.mesh.fsdp={config.mesh.fsdp or 1} --config.remat={bool(config.remat)}{chunk}"


def fit(
    config: TrainConfig, machine: Machine, model: ModelConfig | None = None, shape: BatchShape | None = None
) -> Fit:
    """Chooses what a config leaves open: the fastest settings that fit a machine's memory with a tenth to spare.

    Where nothing is known of the memory, they are those that take no more time than is needed: the parameters on each
    device, nothing computed again, all rows at once.

    Args:
      config: of a run; what it sets stays.
      machine: where it is to run.
      model: its backbone's config; None = as `model_config` finds it.
      shape: padded sizes of a batch; None = the largest.

    Returns:
      The settings. If none fit, those that take the least memory.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: as `model_config` and `train.setup.make_objective`.

    Example:
      >>> from train.plan.machines import machine
      >>> chosen = fit(TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512), machine("v5p:2x2x2"))
      >>> chosen.config.remat, chosen.fits
      (True, True)
    """
    if machine.memory is None:
        return Fit(_with(config, config.mesh.fsdp or 1, bool(config.remat), config.chunk_size), None, None)
    model = model_config(config.model) if model is None else model
    shape = batch_shape(config, model) if shape is None else shape
    least: Fit | None = None
    for fsdp, remat, rows in _candidates(config, machine.devices, shape):
        size = config.chunk_size
        if size is None and rows is not None:
            mesh = device_mesh(_with(config, fsdp, remat, None), machine.devices)
            shards = mesh.shape["data"] * mesh.shape["fsdp"]
            size = rows * shards if rows * shards < shape.documents else None
        memory = forecast(
            computed_on(_with(config, fsdp, remat, size), machine), model, shape, machine.devices, machine.platform
        )
        found = Fit(_with(config, fsdp, remat, size), memory, machine.memory)
        if memory.total <= (1 - SPARE) * machine.memory:
            return found
        if least is None or least.memory is None or memory.total < least.memory.total:
            least = found
    assert least is not None
    return least


def computed_on(config: TrainConfig, machine: Machine) -> TrainConfig:
    """Returns the config with the dtype that "auto" is on a machine, which need not be this one.

    Example:
      >>> from train.plan.machines import machine
      >>> computed_on(TrainConfig(), machine("v5e:2x4")).dtype
      'bfloat16'
    """
    if config.dtype != "auto":
        return config
    return dataclasses.replace(config, dtype="float32" if machine.platform == "cpu" else "bfloat16")


def _with(config: TrainConfig, fsdp: int, remat: bool, chunk: int | None) -> TrainConfig:
    mesh = dataclasses.replace(config.mesh, fsdp=fsdp)
    return dataclasses.replace(config, mesh=mesh, remat=remat, chunk_size=chunk)


def _candidates(config: TrainConfig, devices: int, shape: BatchShape) -> Iterator[tuple[int, bool, int | None]]:
    """Yields (fsdp, remat, rows of a device at a time), the fastest first; None = all rows.

    A frozen backbone keeps nothing: its rows pass a few at a time at no cost, and its weights are gathered for each of
    these only if they must be. Of one that is trained the layers are computed again first, and then whole chunks.
    """
    others = [f for f in range(2, devices + 1) if devices % f == 0 and (f & (f - 1)) == 0]
    wanted = [1, *others] if config.mesh.fsdp is None else [config.mesh.fsdp]
    if config.mesh.data != -1 or config.mesh.tensor != 1:
        wanted = [config.mesh.fsdp or 1]
    remats = [False, True] if config.remat is None else [config.remat]
    most = max(1, POSITIONS // max(shape.patches, shape.document_tokens))
    fewer: list[int | None] = [1 << i for i in reversed(range(most.bit_length()))]
    if config.parts == ("adapter",):
        rows: list[int | None] = [None] if config.chunk_size is not None else fewer
        yield from _in_order(wanted, config.remat is None or config.remat, rows)
        return
    yield from ((fsdp, remat, None) for remat in remats for fsdp in wanted)
    if config.chunk_size is None:
        for remat in remats:
            yield from _in_order(wanted, remat, fewer if remat else fewer[:2])


def _in_order(wanted: list[int], remat: bool, rows: list[int | None]) -> Iterator[tuple[int, bool, int | None]]:
    """Yields candidates: whole weights first, but rather split ones than a single row at a time."""
    yield from ((wanted[0], remat, n) for n in rows if n != 1)
    yield from ((fsdp, remat, n) for fsdp in wanted[1:] for n in rows)
    yield from ((wanted[0], remat, n) for n in rows if n == 1)


def advice(config: TrainConfig, machine: Machine, model: ModelConfig, shape: BatchShape) -> str:
    """Returns the nearest change of a config's settings with which a run fits a machine.

    The settings that a config leaves open come first, then the batch's size.

    Args:
      config: of a run that does not fit.
      machine: where it is to run.
      model: its backbone's.
      shape: padded sizes of its batch.

    Example:
      >>> from train.plan.machines import machine
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512, chunk_size=512)
      >>> model = model_config(config.model)
      >>> advice(config, machine("v5e:2x4"), model, batch_shape(config, model)).startswith("it fits with")
      True
    """
    free = dataclasses.replace(
        config, remat=None, chunk_size=None, mesh=dataclasses.replace(config.mesh, data=-1, fsdp=None)
    )
    if (found := fit(free, machine, model, shape)).fits:
        return f"it fits with {found.describe()}"
    shards, size = machine.devices, config.batch_size // 2
    while size >= max(2, shards):
        size -= size % shards
        smaller = dataclasses.replace(free, batch_size=size)
        if (found := fit(smaller, machine, model, batch_shape(smaller, model))).fits:
            return (
                f"it fits with a smaller batch, which changes the loss: --config.batch_size={size} {found.describe()}"
            )
        size //= 2
    return "no batch of these pages fits: take more devices, or smaller pages (--config.data.max_pixels)"
