"""What every training loop here needs: the run directory, its log, data prepared ahead, a guard, a way to stop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from smart_jax.runtime import is_main, wait_for_all
from train.checkpoints import UnwrittenError
from train.monitor.tensorboard import EventFile, Sample
from train.monitor.wandb_log import ID_FILE, WandbLog

T = TypeVar("T")
# Of a run directory.
PARTS = ("config.json", "metrics.jsonl", "tensorboard", "checkpoints", "adapter", "lora", "model", "wandb", ID_FILE)
_END = object()


def check_run(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a run directory that holds something, unless the run is to resume or overwrite it; writes nothing.

    Raises:
      ValueError: no path is given.
      FileExistsError: the directory is not empty and neither `resume` nor `overwrite` is set.
    """
    if not str(path):
        raise ValueError("config.output is empty: name the run's directory, --config.output=runs/NAME")
    if not (resume or overwrite) and Path(path).exists() and any(Path(path).iterdir()):
        raise FileExistsError(
            f"run directory {path} is not empty: --config.resume=True goes on with it, --config.overwrite=True "
            "deletes the run that is there, or choose another --config.output"
        )


def open_run(path: str | Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path:
    """Creates the run directory, or takes over the one that is there; one process writes for all.

    Args:
      path: the directory.
      config: of this run, written to config.json; on resuming, keys that differ from the first start's are printed.
      resume: go on with what is there.
      overwrite: delete what an earlier run wrote there (and nothing else).

    Raises:
      ValueError, FileExistsError: as `check_run`.
    """
    check_run(path, resume=resume, overwrite=overwrite)
    wait_for_all("run directory checked")  # none is to find what another has written
    folder = Path(path)
    if is_main():
        _write_config(folder, config, overwrite=overwrite)
    wait_for_all("run directory opened")
    return folder


def _write_config(folder: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
    for part in PARTS if overwrite else ():
        shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "config.json"
    if written.is_file():
        for line in _changes(json.loads(written.read_text()), json.loads(json.dumps(config))):
            print(f"config differs from the run's start: {line}")
    else:
        _write_whole(written, json.dumps(config, indent=2) + "\n")


def _changes(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if where or key not in ("resume", "overwrite"):
                yield from _changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where}: {old!r} -> {new!r}"


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> UnwrittenError:
    return UnwrittenError(
        error.errno,
        f"{path} can not be written ({error.strerror or error}): make room on that disk, or set the cause right, and "
        "resume the run from its last checkpoint",
    )


class MetricsLog:
    """One line of metrics.jsonl and one point of each TensorBoard curve per logged step.

    Records after `last_step`, of a run that was cut off, are dropped: a resumed run writes those steps again. Of
    several processes one writes.
    """

    def __init__(self, folder: Path, last_step: int = 0, mirror: WandbLog | None = None):
        """`mirror` gets a copy. Raises UnwrittenError: the files can not be written."""
        self.path, self._mirror = folder / "metrics.jsonl", mirror
        if not is_main():
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= last_step]
        _write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._events = EventFile(folder / "tensorboard", last_step + 1)

    def write(self, step: int, values: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Raises UnwrittenError: the disk is full, for example; the message names the folder and the remedy."""
        if not is_main():
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self._events.write(step, values, samples)
        except OSError as error:
            raise _unwritten(self.path.parent, error) from error
        if self._mirror is not None:
            self._mirror.write(step, values, samples)

    def close(self) -> None:
        if not is_main():
            return
        with contextlib.suppress(OSError):  # `write` has said so, and here it would hide another error
            self._events.close()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line that was cut off in the middle is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


class Prefetch(Generic[T]):
    """Runs an iterator in a thread of its own, at most `depth` items ahead; order and exceptions are kept."""

    def __init__(self, source: Iterator[T], depth: int = 2):
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True, name="prefetch")
        self._thread.start()

    def _work(self, source: Iterator[T]) -> None:
        try:
            for item in source:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:  # raised again where the item is asked for
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._queue.get()
        if item is _END or isinstance(item, BaseException):
            self._queue.put(item)
            raise StopIteration if item is _END else item
        return item

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)


class LossGuard:
    """Stops the run where loss or gradient are not finite. Each is read one step late, while the device computes."""

    def __init__(self, allowed: int = 0) -> None:
        """`allowed`: such steps in a row, whose updates the optimizer leaves out."""
        self._pending: tuple[int, Sequence[str], dict[str, jax.Array]] | None = None
        self._allowed, self._in_a_row = allowed, 0
        self.last = math.nan

    def push(self, step: int, ids: Sequence[str], loss: jax.Array, grad_norm: jax.Array) -> None:
        self.flush()
        self._pending = (step, ids, {"loss": loss, "gradient's norm": grad_norm})

    def flush(self) -> None:
        """Raises FloatingPointError, with the step and the ids of the batch's examples."""
        if self._pending is None:
            return
        step, ids, values = self._pending
        found = {name: float(value) for name, value in values.items()}
        self._pending, self.last = None, found["loss"]
        wrong = [f"{name} is {value}" for name, value in found.items() if not np.isfinite(value)]
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        if not wrong:
            return
        what = f"{wrong[0]} at step {step}, on the examples {', '.join(map(str, ids))}"
        if self._in_a_row <= self._allowed:
            announce(f"\n{what}: the update is left out")
            return
        raise FloatingPointError(
            f"{what}. The last checkpoint is from before it: look at these examples, lower the learning rate or the "
            "compute precision's risk (--config.dtype=float32), and resume; --config.optimizer.skip_nonfinite=N leaves "
            "out up to N such updates in a row"
        )


class StopRequest:
    """Context in which SIGTERM, as sent before a machine is taken away, asks the loop to save and end.

    With several processes one of them that gets it is enough: all end after the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> StopRequest:
        # With several processes jax's own service sees the signal and agrees on a step.
        self._signals = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._signals:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._signals:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def asked(self, step: int) -> bool:
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


class Progress:
    """A bar over the run's examples with loss, examples/s and ETA."""

    def __init__(self, start: int, steps: int, batch_size: int):
        self._size, self._steps = batch_size, steps
        self._bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            unit="example",
            unit_scale=True,
            mininterval=1.0,
            disable=not is_main(),
        )

    def update(self, step: int, loss: float) -> None:
        self._bar.set_description(f"step {step}/{self._steps}", refresh=False)
        if math.isfinite(loss):
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(self._size)

    def close(self) -> None:
        self._bar.close()


def announce(text: str) -> None:
    """Prints it, once however many processes there are."""
    if is_main():
        print(text, flush=True)


def due(step: int, every: int, steps: int) -> bool:
    """True at every `every`-th step (0 = none of them) and at the last."""
    return step == steps or (every > 0 and step % every == 0)


def format_table(values: Mapping[str, float], title: str) -> str:
    """Two columns, name and value."""
    width = max((len(name) for name in values), default=0)
    lines = [f"  {name:<{width}}  {value:10.4f}" for name, value in values.items()]
    return "\n".join([title, *lines])
