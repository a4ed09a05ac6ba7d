"""Run directory: refused where it holds another run, and written so that no file is half there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smart_jax.files import holder, named_lock, read_json
from smart_jax.runtime import is_main, on_any, wait_for_all

WANDB_ID_FILE = "wandb_id"
LOCK = "run.lock"
CHANGED = "changed_on_resuming"  # in config.json: former and later settings, one entry for each start that changed some
# What a run writes into its directory.
PARTS = (
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "exported.json",
    "states",
    "adapter",
    "lora",
    "model",
    "wandb",
    WANDB_ID_FILE,
)


class UnwrittenError(OSError):
    """Error of a checkpoint, or another file of a run, that cannot be written: the disk is full, for example."""


class BusyRunError(ValueError):
    """Error of a run directory that another process writes to: the message says which."""


def check_run(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a run directory that holds something, unless the run is to resume or overwrite it; writes nothing.

    Args:
      path: the directory.
      resume: whether the run goes on with what is there.
      overwrite: whether what is there is deleted.

    Raises:
      ValueError: no path is given.
      BusyRunError: another process writes to the directory.
      FileExistsError: the directory is not empty and neither `resume` nor `overwrite` is set.

    Example:
      >>> check_run("", resume=False, overwrite=False)
      Traceback (most recent call last):
      ValueError: config.output is empty: name the run's directory, --config.output=runs/NAME
    """
    if not str(path):
        raise ValueError("config.output is empty: name the run's directory, --config.output=runs/NAME")
    if name := holder(Path(path) / LOCK):
        raise _busy(path, name)
    _check_empty(path, resume=resume, overwrite=overwrite)


def _check_empty(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    if not (resume or overwrite) and Path(path).exists() and any(file.name != LOCK for file in Path(path).iterdir()):
        raise FileExistsError(
            f"run directory {path} is not empty: --config.resume=True goes on with it, --config.overwrite=True "
            "deletes the run that is there, or choose another --config.output"
        )


@contextlib.contextmanager
def hold_run(path: str | Path) -> Iterator[None]:
    """Keeps other processes from a run directory, which is made where it is missing; one process does so for all.

    A process that was killed holds nothing any longer.

    Raises:
      BusyRunError: another run writes to it; the message says which.
      UnwrittenError: the directory cannot be written to.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with hold_run(folder):
      ...     check_run(folder, resume=True, overwrite=False)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      train.run_directory.BusyRunError: run directory ... is written to by process ...: wait for it, or end it
    """
    with contextlib.ExitStack() as stack:
        error: Exception | None = None
        if is_main():
            try:
                Path(path).mkdir(parents=True, exist_ok=True)
                stack.enter_context(named_lock(Path(path) / LOCK, lambda name: _busy(path, name)))
            except BusyRunError as busy:
                error = busy
            except OSError as problem:
                error = unwritten(Path(path) / LOCK, problem)
        if on_any(error is not None):
            raise error or BusyRunError(f"run directory {path} cannot be written to, see the first process's error")
        yield


def _busy(path: str | Path, name: str) -> BusyRunError:
    return BusyRunError(f"run directory {path} is written to by {name}: wait for it, or end it")


def open_run(path: str | Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path:
    """Creates the run directory, or takes over the one that is there; one process writes for all.

    Args:
      path: the directory.
      config: of this run, written to config.json; on resuming, keys that differ from the last start's are printed and
        kept beside it, with both values.
      resume: whether the run goes on with what is there.
      overwrite: whether what an earlier run wrote there, and nothing else, is deleted.

    Returns:
      The directory.

    Raises:
      FileExistsError: as `check_run`.
      UnwrittenError: config.json cannot be written.

    Example:
      >>> import tempfile
      >>> folder = open_run(Path(tempfile.mkdtemp()) / "run", {"seed": 0}, resume=False, overwrite=False)
      >>> [path.name for path in folder.iterdir()]
      ['config.json']
    """
    _check_empty(path, resume=resume, overwrite=overwrite)
    wait_for_all("run directory checked")  # before one of them writes
    folder = Path(path)
    if is_main():
        _write_config(folder, config, overwrite=overwrite)
    wait_for_all("run directory opened")
    return folder


def _write_config(folder: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
    for part in PARTS if overwrite else ():
        shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    written, new = folder / "config.json", json.loads(json.dumps(config))
    if written.is_file():
        old = dict(read_json(written))
        earlier = old.pop(CHANGED, [])
        changed = {key: list(values) for key, *values in _changes(old, new)}
        for key, (before, after) in changed.items():
            print(f"config differs from the run's last start: {key}: {before!r} -> {after!r}")
        if not changed:
            return
        new[CHANGED] = [*earlier, changed]
    write_whole(written, json.dumps(new, indent=2) + "\n")


def _changes(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if where or key not in ("resume", "overwrite"):
                yield from _changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete; raises UnwrittenError."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a disk that cannot be written to, would hide the first
            temporary.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError) -> UnwrittenError:
    """Returns the error that says what to do about a file of a run that cannot be written."""
    if error.errno == errno.ENOENT:
        return UnwrittenError(error.errno, gone(path if path.parent.exists() else path.parent))
    return UnwrittenError(
        error.errno,
        f"{path} cannot be written ({error.strerror or error}): make room on that disk, or set the cause right, and "
        "resume the run from its last checkpoint",
    )


def gone(folder: Path) -> str:
    """Returns what to do about a folder that was removed while its run went on."""
    return f"{folder} is gone, with what the run had written there: bring it back and resume the run, or start it again"
