"""A plan as text and as JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

from train.plan.compiled import Compiled
from train.plan.fit import Fit, settings
from train.plan.host import UTILISATION, Host
from train.plan.machines import GIB, Machine
from train.plan.memory import BATCHES_ALIVE, Memory
from train.plan.shapes import BatchShape

HEADER = "| GiB of a device | weights | optimizer | batches | temporary | all |\n|---|---:|---:|---:|---:|---:|"


class Plan(NamedTuple):
    """Forecast of what a run takes on a machine.

    Attributes:
      name: of the config file.
      machine: where it is to run.
      shape: padded sizes of its batch.
      fit: its settings, and its memory by arithmetic.
      compiled: its memory by a compiler; None = none was asked.
      host: steps, rates and disk.
      advice: a change with which it fits; None = it does.

    Example:
      >>> Plan.__name__
      'Plan'
    """

    name: str
    machine: Machine
    shape: BatchShape
    fit: Fit
    forecast: Memory
    compiled: Compiled | None
    host: Host
    advice: str | None

    @property
    def total(self) -> int:
        """Bytes of a device: the compiler's, where it was asked."""
        memory = None if self.compiled is None else self.compiled.memory
        return (memory or self.forecast).total

    @property
    def fits(self) -> bool | None:
        """Whether a device's memory suffices; None = that is not known."""
        if self.machine.memory is None:
            return None
        if self.compiled is not None and self.compiled.exact:
            return self.compiled.memory is not None and self.total <= self.machine.memory
        return self.forecast.total <= self.machine.memory


def as_text(plan: Plan) -> str:
    """Returns a plan as paragraphs and a table in Markdown.

    Example:
      >>> from train.config import TrainConfig
      >>> from train.plan import machine, plan
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512)
      >>> print(as_text(plan(config, machine("v5p:2x2x2"), name="mine.py", compile=False)).splitlines()[0])
      mine.py on v5p:2x2x2: 8 x TPU v5 (95.49 GiB each)
    """
    machine, shape = plan.machine, plan.shape
    each = "memory not known" if machine.memory is None else f"{machine.memory / GIB:.2f} GiB"
    lines = [
        f"{plan.name} on {machine.name}: {machine.devices} x {machine.kind} ({each} each)",
        f"  {settings(plan.fit.config)}",
        f"  {shape.queries} queries of {shape.query_tokens} tokens, {shape.documents} documents of "
        f"{shape.document_tokens:,} tokens and {shape.patches:,} patches; {BATCHES_ALIVE} batches on the devices",
        "",
        HEADER,
        _row("arithmetic", plan.forecast),
    ]
    if plan.compiled is not None:
        memory = plan.compiled.memory
        lines.append(
            f"| {plan.compiled.name} | {plan.compiled.note} |" if memory is None else _row(plan.compiled.name, memory)
        )
    if plan.compiled is not None and not plan.compiled.exact:
        lines += ["", plan.compiled.note]
    lines += ["", _verdict(plan), *_host(plan)]
    return "\n".join(lines)


def _row(name: str, memory: Memory) -> str:
    return f"| {name} | " + " | ".join(f"{part / GIB:,.2f}" for part in (*memory, memory.total)) + " |"


def _verdict(plan: Plan) -> str:
    if plan.fits is None:
        return "whether it fits: not known, nor is the memory of a device"
    assert plan.machine.memory is not None
    text = f"{'fits' if plan.fits else 'DOES NOT FIT'}: {plan.total / GIB:.1f} of {plan.machine.memory / GIB:.1f} GiB"
    return text if plan.advice is None else f"{text}; {plan.advice}"


def _host(plan: Plan) -> list[str]:
    host = plan.host
    lines = []
    if host.steps is not None:
        lines.append(f"steps: {host.steps:,}" + ("" if host.hours is None else f", {host.hours:,.1f} hours"))
    else:
        lines.append("steps: not known, since the data set is not here (python -m train.data)")
    if host.step_seconds is not None:
        lines.append(
            f"a step: {host.step_seconds:,.1f} s at {UTILISATION:.0%} of the peak (an assumption), so the host is to "
            f"prepare {host.pages_wanted:,.0f} documents a second"
        )
    if host.pages_had is not None:
        lines.append(f"this host prepares about {host.pages_had:,.1f} documents a second (CPU time of a few)")
    lines.append(
        f"host memory: {host.batches / GIB:,.1f} GiB of batches over all hosts; less with "
        f"--config.data.prefetch={max(0, plan.fit.config.data.prefetch - 1)}"
    )
    free = "" if host.disk_had is None else f", {host.disk_had / GIB:,.1f} GiB are free"
    lines.append(f"disk: {host.disk_wanted / GIB:,.2f} GiB of checkpoints and exports{free}")
    return lines + _states(host)


def _states(host: Host) -> list[str]:
    """Returns what is to be said of frozen states that are kept."""
    states = host.states
    if states is None:
        return []
    if states.size is None:
        return [f"frozen states: at most {states.item / 2**20:,.2f} MiB of disk a page, if they are kept"]
    if states.refusal:
        return [f"frozen states are not kept: {states.refusal}, at most"]
    text = f"frozen states: at most {states.size / GIB:,.1f} GiB of disk, where each is computed once"
    if host.states_seconds is None or host.steps is None:
        return [text]
    hours = host.steps * host.states_seconds / 3600
    return [f"{text}; a step then takes {host.states_seconds:,.3f} s, and all of them {hours:,.1f} hours"]


TABLE = (
    "| config | machine | fsdp | remat | rows at a time | weights | optimizer | batches | temporary | all, GiB | of | "
    "arithmetic | fits |\n|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
)


def as_row(plan: Plan) -> str:
    """Returns a plan as a line below `TABLE`: GiB of a device by a compiler, where one was asked, and by arithmetic.

    Example:
      >>> from train.config import TrainConfig
      >>> from train.plan import machine, plan
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512)
      >>> as_row(plan(config, machine("v5p:2x2x2"), name="mine.py", compile=False)).split("|")[1:6]
      [' mine.py ', ' v5p:2x2x2 ', ' 1 ', ' yes ', ' 64 ']
    """
    config, asked = plan.fit.config, plan.compiled
    memory = plan.forecast if asked is None else asked.memory
    parts = ["", "", "", asked.note, ""] if asked is not None and memory is None else []
    parts = parts or [f"{part / GIB:,.2f}" for part in (*(memory or ()), plan.total)]
    limit = "" if plan.machine.memory is None else f"{plan.machine.memory / GIB:,.1f}"
    fits = {None: "", True: "yes", False: "no"}[plan.fits]
    remat, rows = "yes" if config.remat else "no", config.chunk_size or "all"
    cells = (plan.name, plan.machine.name, config.mesh.fsdp, remat, rows, *parts, limit)
    return f"| {' | '.join(map(str, cells))} | {plan.forecast.total / GIB:,.2f} | {fits} |"


def as_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan as what JSON can hold; bytes are whole numbers.

    Example:
      >>> from train.config import TrainConfig
      >>> from train.plan import machine, plan
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512)
      >>> as_json(plan(config, machine("v5p:2x2x2"), compile=False))["fits"]
      True
    """
    config, states = plan.fit.config, plan.host.states
    return {
        "config": plan.name,
        "machine": plan.machine._asdict(),
        "batch": plan.shape._asdict(),
        "settings": {"mesh.fsdp": config.mesh.fsdp, "remat": config.remat, "chunk_size": config.chunk_size},
        "bytes": {"arithmetic": plan.forecast._asdict(), "compiled": _compiled(plan.compiled)},
        "fits": plan.fits,
        "advice": plan.advice,
        "host": plan.host._asdict() | {"hours": plan.host.hours, "states": states and states._asdict()},
    }


def _compiled(compiled: Compiled | None) -> dict[str, Any] | None:
    if compiled is None:
        return None
    memory = None if compiled.memory is None else compiled.memory._asdict()
    return {"compiler": compiled.name, "exact": compiled.exact, "note": compiled.note, "memory": memory}
