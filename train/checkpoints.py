"""Checkpoints of a training run, on orbax's `CheckpointManager`; no other module knows orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from smart_jax.files import files_fingerprint
from smart_jax.models import array_sums
from smart_jax.runtime import is_main, on_any, wait_for_all
from train.run_directory import UnwrittenError, gone

Tree = Any  # pytree of arrays, whatever its nodes
FORMAT = 1
_END_BYTES = 1 << 20
_ITEMS = ("params", "train_state", "info")
_PARTIAL = ".orbax-checkpoint-tmp"  # suffix of the folders that orbax has not completed

_logger = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
    """Error of a checkpoint that is truncated or corrupt."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Contents of a checkpoint.

    Attributes:
      step: number of batches seen.
      params: trained parameters, in the structure and placement that was asked for.
      train_state: state of the optimizer, likewise.
      data: JSON values: position of the data iterator.
    """

    step: int
    params: Tree
    train_state: Tree
    data: dict[str, Any]


class Checkpoints:
    """Checkpoints of one run: the newest of them and the best by a metric.

    Each holds the parameters (apart from the rest, so that they can be read alone), the train state, the position in
    the data, and what model they belong to. Saving is synchronous and atomic: a step's folder appears under its name
    only when it is complete, so a process that is killed at any moment leaves the earlier checkpoints usable.

    Example:
      >>> import tempfile
      >>> folder, params = tempfile.mkdtemp(), {"adapter.scale": jax.numpy.ones(2)}
      >>> checkpoints = Checkpoints(folder, identity={"trainable": "adapter"})
      >>> checkpoints.save(1, params=params, train_state={"step": jax.numpy.int32(1)}, data={"batches": 1})
      >>> checkpoints.restore_params(params=params)["adapter.scale"].tolist()
      [1.0, 1.0]
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        identity: Mapping[str, Any],
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "max",
    ):
        """Opens (and creates) the folder.

        Args:
          folder: of the checkpoints alone.
          identity: JSON values that say what the parameters belong to, see `fingerprint`; restoring compares them.
          keep: number of the newest that are kept.
          best_metric: name of a metric by which the best is kept, too; None = no metric.
          best_mode: "max" or "min".

        Raises:
          ValueError: `keep` below 1 or an unknown `best_mode`.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint has to be kept")
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode is '{best_mode}': it is 'min' or 'max'")
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity = json.loads(json.dumps(dict(identity)))
        self._best_metric = best_metric
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if best_metric is not None:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        logging.getLogger("absl").addFilter(_worth_showing)
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=_ITEMS,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "train_state": ocp.StandardCheckpointHandler(),
                "info": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=None if best_metric is None else lambda metrics: metrics[best_metric],
                best_mode=best_mode,
                enable_async_checkpointing=False,  # the parameters' buffers are donated to the next step
            ),
        )
        self._tidied = False

    def save(
        self,
        step: int,
        *,
        params: Tree,
        train_state: Tree,
        data: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint and, when it is complete, deletes those that are no longer kept.

        One of the same step is replaced: metrics may be known only after it was written first.

        Args:
          step: number of updates made.
          params: pytree of arrays.
          train_state: pytree of arrays: the optimizer's state.
          data: position of the data iterator (JSON values).
          metrics: of this step, among them `best_metric` where it was computed.

        Raises:
          UnwrittenError: it cannot be written, or the folder is gone; what there is of it is removed, the earlier ones
            stay.
        """
        if not self.folder.exists():  # orbax would make it again, for this checkpoint alone
            lost = self.folder if self.folder.parent.exists() else self.folder.parent
            raise UnwrittenError(f"checkpoint of step {step} cannot be written: {gone(lost)}")
        params, train_state = _by_name(params), _by_name(train_state)
        ranked = metrics is not None and self._best_metric in metrics
        info = {
            "format": FORMAT,
            "step": step,
            "identity": self.identity,
            "data": dict(data),
            "checksums": {"params": _checksums(params), "train_state": _checksums(train_state)},
        }
        before = set(threading.enumerate())
        self._tidy()
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    train_state=ocp.args.StandardSave(train_state),
                    info=ocp.args.JsonSave(info),
                ),
                metrics=dict(metrics) if ranked else None,  # type: ignore[arg-type]
                force=True,
            )
            self._manager.wait_until_finished()
        except Exception as error:  # of a full disk, a ValueError of tensorstore's
            raise self._unwritten(step, error, set(threading.enumerate()) - before) from error

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint; None = there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step with the best metric among those that are kept; None without a metric."""
        return None if self._best_metric is None else self._manager.best_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int | None = None, *, params: Tree, train_state: Tree) -> Restored:
        """Reads a checkpoint.

        Args:
          step: of the checkpoint; None = the newest.
          params: tree of arrays with the structure, shapes, dtypes and placement that are wanted.
          train_state: likewise.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          DamagedCheckpointError: it is truncated or corrupt; the message names it and the remedy.
          ValueError: it belongs to another model.
        """
        step = self._existing(step)
        info = self._info(step)
        return Restored(
            step=step,
            params=self._tree(step, "params", params, info),
            train_state=self._tree(step, "train_state", train_state, info),
            data=info["data"],
        )

    def restore_newest(self, *, params: Tree, train_state: Tree) -> Restored:
        """Reads the newest checkpoint that is whole; arguments as in `restore`.

        Damaged ones that are newer are moved to the folder "<checkpoints>-damaged" beside this one, and a warning says
        so. A checkpoint that one of several processes cannot read counts as damaged for all.

        Raises:
          FileNotFoundError: there is no checkpoint.
          DamagedCheckpointError: none of them is whole.
          ValueError: as `restore`.
        """
        while True:
            step, restored, error = self._existing(None), None, None
            try:
                restored = self.restore(step, params=params, train_state=train_state)
            except DamagedCheckpointError as damage:
                error = damage
            damaged = on_any(error is not None)
            if restored is not None and not damaged:
                return restored
            error = error or self._damaged(step, "a part of it", OSError("found by another process"))
            if len(self.all_steps()) == 1:
                raise error
            aside = self.folder.with_name(f"{self.folder.name}-damaged") / str(step)
            if is_main():
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(aside)
                _logger.warning("%s. It is now '%s', and the one before is read", error, aside)
            wait_for_all(f"step {step} set aside")
            self._manager.reload()

    def restore_params(self, step: int | None = None, *, params: Tree) -> Tree:
        """Reads the parameters alone; arguments and errors as of `restore`."""
        step = self._existing(step)
        return self._tree(step, "params", params, self._info(step))

    def close(self) -> None:
        """Ends orbax's threads."""
        self._manager.close()

    def _existing(self, step: int | None) -> int:
        steps = self.all_steps()
        if step is None and steps:
            return steps[-1]
        if step is None or step not in steps:
            raise FileNotFoundError(
                f"{self.folder} has no checkpoint" + ("" if step is None else f" of step {step}; it has {steps}")
            )
        return step

    def _info(self, step: int) -> dict[str, Any]:
        try:
            info = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))["info"]
            identity = info["identity"]
            wrong_format, _ = info["format"] != FORMAT, (info["data"], info["checksums"])
        except Exception as error:  # orbax raises many kinds, none of them documented
            raise self._damaged(step, "info", error) from error
        if wrong_format:
            raise ValueError(f"checkpoint {self.folder / str(step)} has format {info['format']}, not {FORMAT}")
        if identity != self.identity:
            raise ValueError(
                f"checkpoint {self.folder / str(step)} is of another model: {_difference(identity, self.identity)}. "
                "Restore it with the configuration it was written with, or start in another folder"
            )
        return info

    def _tree(self, step: int, item: str, like: Tree, info: Mapping[str, Any]) -> Tree:
        wanted = _by_name(like)
        if wanted.keys() != info["checksums"][item].keys():
            difference = sorted(wanted.keys() ^ info["checksums"][item].keys())
            raise ValueError(
                f"checkpoint {self.folder / str(step)} and this run differ in the entries of {item}: "
                f"{', '.join(difference[:6])}. Was it written with another optimizer or objective?"
            )
        target = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items()}
        handler = ocp.args.StandardRestore(target)
        try:
            leaves = self._manager.restore(step, args=ocp.args.Composite(**{item: handler}))[item]
        except Exception as error:
            raise self._damaged(step, item, error) from error
        expected = info["checksums"][item]
        sums = _checksums(leaves, like=expected)
        bad = [name for name in sums if None not in (sums[name], expected[name]) and sums[name] != expected[name]]
        if bad:
            raise self._damaged(step, item, ValueError(f"checksum of {', '.join(bad[:6])} differs"))
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])  # orbax sorts by name

    def _tidy(self) -> None:
        """Removes, once, what a run that was killed left unfinished.

        This does not happen on opening: a process that reads the checkpoints of a run must leave alone what that run is
        writing.
        """
        if not self._tidied and jax.process_index() == 0:
            for partial in self.folder.glob(f"*{_PARTIAL}"):
                shutil.rmtree(partial, ignore_errors=True)
        self._tidied = True

    def _unwritten(self, step: int, error: Exception, threads: set[threading.Thread]) -> UnwrittenError:
        for thread in threads:  # they go on writing the rest; the threads of a pool do not end
            if not thread.name.startswith(("ThreadPoolExecutor", "asyncio")):
                with contextlib.suppress(Exception):  # threads of orbax raise their error here
                    thread.join(timeout=30)
        if jax.process_index() == 0:  # the incomplete folder takes the room that another attempt needs
            for partial in self.folder.glob(f"{step}.*"):
                _remove(partial)
        self._manager.reload()
        steps = self.all_steps()
        rest = f"those of steps {steps} are whole, and the run resumes from the last" if steps else "there is none yet"
        return UnwrittenError(
            f"checkpoint of step {step} cannot be written to {self.folder} ({type(error).__name__}: {_brief(error)}). "
            f"Of the checkpoints {rest}: make room on that disk, or set the cause right, and resume the run"
        )

    def _damaged(self, step: int, item: str, error: Exception) -> DamagedCheckpointError:
        others = [s for s in self.all_steps() if s != step]
        remedy = f"the run then resumes from step {others[-1]}" if others else "the run then starts again"
        return DamagedCheckpointError(
            f"checkpoint of step {step} is truncated or corrupt: {item} cannot be read "
            f"({type(error).__name__}: {_brief(error)}). Delete the folder {self.folder / str(step)}: {remedy}"
        )


def _worth_showing(record: logging.LogRecord) -> bool:
    """Leaves out what orbax logs: each file that it handles, and errors, which it raises as well, for each thread."""
    return "orbax" not in record.pathname or record.levelno > logging.ERROR


def fingerprint(config: Any) -> str:
    """Computes a digest of a dataclass of plain values: models of one fingerprint have the same architecture.

    Example:
      >>> from train.optimizer import OptimizerConfig
      >>> fingerprint(OptimizerConfig()) == fingerprint(OptimizerConfig(b1=0.8))
      False
    """
    text = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def weights_fingerprint(*folders: str | Path) -> str:
    """Computes a digest of the weights in folders: names, sizes, and both ends of each safetensors file."""
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.safetensors"))]
    return files_fingerprint(files, sample=_END_BYTES)


def _by_name(tree: Tree) -> dict[str, jax.Array]:
    """Returns leaves by path, in the tree's order: the file does not depend on the classes of the tree's nodes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jax.numpy.asarray(x) for path, x in leaves}


def _checksums(
    leaves: Mapping[str, jax.Array], like: Mapping[str, int | str | None] | None = None
) -> dict[str, int | str | None]:
    """Computes a checksum of each array: CRC-32 of its bytes, or a text with the sum of its bits.

    The latter is taken of an array that is split over processes, which compute it together, and of one whose checksum
    in `like` is such a text. None = `like` has the CRC-32 of an array that is split here.
    """
    split = [
        name for name, x in leaves.items() if (not _seen_whole(x) if like is None else isinstance(like[name], str))
    ]
    sums: dict[str, int | str | None] = {}
    for name, total in zip(split, array_sums([leaves[name] for name in split]), strict=True):
        sums[name] = f"sum of bits {int(total)}"
    for name, x in leaves.items():
        if name not in sums:
            sums[name] = _crc32(np.asarray(x)) if _seen_whole(x) else None
    return sums


def _crc32(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x.reshape(1) if x.ndim == 0 else x).view(np.uint8).data)


def _seen_whole(x: jax.Array) -> bool:
    """Returns whether this process has all of an array."""
    return x.is_fully_addressable or x.is_fully_replicated


def _remove(folder: Path, *, quiet: float = 1.0, limit: float = 30.0) -> None:
    """Deletes a folder until it stays away for `quiet` seconds: a failed save may go on writing for a moment."""
    start = gone = time.monotonic()
    while (now := time.monotonic()) - gone < quiet and now - start < limit:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            gone = time.monotonic()
        time.sleep(0.05)


def _brief(error: Exception) -> str:
    """Returns both ends of a message, whose middle may be long; and before it the cause that tensorstore hides."""
    text = " ".join(str(error).split())
    code = re.search(r"os_error_code='(\d+)'", text)
    cause = f"{os.strerror(int(code[1]))}: " if code else ""
    return cause + (text if len(text) <= 200 else f"{text[:100]} ... {text[-100:]}")


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    names = [name for name in (*here, *there) if there.get(name) != here.get(name)]
    return "; ".join(f"{n} is {there.get(n)!r} there and {here.get(n)!r} here" for n in dict.fromkeys(names))
