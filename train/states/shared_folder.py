"""A folder of states: which processes see it, who of them makes what, and what it is of."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from smart_jax.files import read_json
from smart_jax.runtime import batch_part, wait_for_all
from train.run_directory import write_whole

FORMAT, VERSION = "smart_jax.train.states", 1


@dataclasses.dataclass(frozen=True)
class SharedFolder:
    """A folder, as one of the processes that see it: those of a host or, on a shared disk, of all hosts.

    Attributes:
      path: of the folder.
      index, count: this process makes every count-th piece of work, from `index` on.
      writes: whether it writes what it makes: of several processes that make the same, one does.
      leads: whether it is the one that writes for all who see the folder.

    Example:
      >>> folder = SharedFolder(Path("states"))
      >>> folder.own([3, 4, 5])
      [3, 4, 5]
    """

    path: Path
    index: int = 0
    count: int = 1
    writes: bool = True
    leads: bool = True

    def own(self, pieces: list[int]) -> list[int]:
        """Returns this process's share of the pieces."""
        return pieces[self.index :: self.count]

    @classmethod
    def of(cls, path: Path, mesh: Mesh) -> SharedFolder:
        """Makes the folder, and finds out who sees it; each process has to call this."""
        path.mkdir(parents=True, exist_ok=True)
        if jax.process_count() == 1:
            return cls(path)
        own, part = jax.process_index(), batch_part(mesh)[0]
        token = np.frombuffer(secrets.token_bytes(4), np.uint8)
        run = bytes(np.asarray(multihost_utils.broadcast_one_to_all(token)).astype(np.uint8)).hex()
        parts = np.asarray(multihost_utils.process_allgather(np.int32(part))).tolist()
        mark = path / f"process-{run}-{own}"
        mark.touch()
        wait_for_all("states: all processes have touched the folder")
        seen = [process for process in range(len(parts)) if (path / f"process-{run}-{process}").exists()]
        wait_for_all("states: all processes have looked")
        mark.unlink()
        shares = sorted({parts[process] for process in seen})
        writer = min(process for process in seen if parts[process] == part)
        return cls(path, shares.index(part), len(shares), writes=own == writer, leads=own == min(seen))

    def difference(self, description: Mapping[str, Any]) -> str:
        """Returns in what the states that are here differ from those that are described; "" = in nothing.

        There may be states of more layers, and of more data, than are described.
        """
        there = self.manifest()
        if not there:
            return ""
        wanted = dict(description) | {"format": FORMAT, "version": VERSION}
        kept = {name: _shared(there.get(name), value) for name, value in wanted.items()}
        return "; ".join(f"{name} {kept[name]!r}, not {x!r}" for name, x in wanted.items() if kept[name] != x)

    def manifest(self) -> dict[str, Any]:
        """Returns what is written of the states; {} where there are none."""
        try:
            return read_json(self.path / "manifest.json")
        except (OSError, ValueError):
            return {}

    def describe(self, description: Mapping[str, Any]) -> None:
        """Writes what the states are of."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **description}, indent=2)
        write_whole(self.path / "manifest.json", text + "\n")

    def clear(self) -> None:
        """Deletes the states."""
        for name in ("manifest.json", "items.npz"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("queries", "documents"):
            shutil.rmtree(self.path / name, ignore_errors=True)


def _shared(there: Any, wanted: Any) -> Any:
    """Returns what of the stored value concerns the one that is wanted: of layers and data, those that are in both."""
    if isinstance(wanted, list) and isinstance(there, list) and set(wanted) <= set(there):
        return wanted
    if isinstance(wanted, dict) and isinstance(there, dict):
        return {name: there.get(name) for name in wanted}
    return there
