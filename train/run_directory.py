"""Run directory: refused where it holds another run, and written so that no file is half there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smart_jax.files import read_json
from smart_jax.runtime import is_main, wait_for_all

WANDB_ID_FILE = "wandb_id"
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


def check_run(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a run directory that holds something, unless the run is to resume or overwrite it; writes nothing.

    Args:
      path: the directory.
      resume: whether the run goes on with what is there.
      overwrite: whether what is there is deleted.

    Raises:
      ValueError: no path is given.
      FileExistsError: the directory is not empty and neither `resume` nor `overwrite` is set.

    Example:
      >>> check_run("", resume=False, overwrite=False)
      Traceback (most recent call last):
      ValueError: config.output is empty: name the run's directory, --config.output=runs/NAME
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
      resume: whether the run goes on with what is there.
      overwrite: whether what an earlier run wrote there, and nothing else, is deleted.

    Returns:
      The directory.

    Raises:
      ValueError, FileExistsError: as `check_run`.
      UnwrittenError: config.json cannot be written.

    Example:
      >>> import tempfile
      >>> folder = open_run(Path(tempfile.mkdtemp()) / "run", {"seed": 0}, resume=False, overwrite=False)
      >>> [path.name for path in folder.iterdir()]
      ['config.json']
    """
    check_run(path, resume=resume, overwrite=overwrite)
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
    written = folder / "config.json"
    if written.is_file():
        for line in _changes(read_json(written), json.loads(json.dumps(config))):
            print(f"config differs from the run's start: {line}")
    else:
        write_whole(written, json.dumps(config, indent=2) + "\n")


def _changes(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if where or key not in ("resume", "overwrite"):
                yield from _changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where}: {old!r} -> {new!r}"


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete; raises UnwrittenError."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError) -> UnwrittenError:
    """Returns the error that says what to do about a file of a run that cannot be written."""
    return UnwrittenError(
        error.errno,
        f"{path} cannot be written ({error.strerror or error}): make room on that disk, or set the cause right, and "
        "resume the run from its last checkpoint",
    )
