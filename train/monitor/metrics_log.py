"""The log of a run: metrics.jsonl, and copies of it for TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smart_jax.files import parse_json
from smart_jax.runtime import is_main
from train.monitor.tensorboard import EventFile, Sample
from train.monitor.wandb_log import WandbLog
from train.run_directory import unwritten, write_whole


class MetricsLog:
    """Log of a run: each logged step is a line of metrics.jsonl and a point of every TensorBoard curve.

    What is written of the last step once more is added to its line.

    Records after `last_step`, of a run that was cut off, are dropped: a resumed run writes those steps again. Of
    several processes one writes.

    Attributes:
      path: of metrics.jsonl.
      last: record of the last step that was written, {} = none; of an earlier start of the run, too.

    Example:
      >>> import tempfile
      >>> from contextlib import closing
      >>> with closing(MetricsLog(Path(tempfile.mkdtemp()))) as log:
      ...     log.write(1, {"loss": 0.5})
      ...     read_metrics(log.path)
      [{'step': 1, 'loss': 0.5}]
    """

    def __init__(self, folder: Path, last_step: int = 0, mirror: WandbLog | None = None):
        """Opens the log in a run directory.

        Args:
          folder: the run directory.
          last_step: step that the run goes on from.
          mirror: gets a copy.

        Raises:
          UnwrittenError: the files cannot be written.
        """
        self.path, self._mirror = folder / "metrics.jsonl", mirror
        kept = [record for record in read_metrics(self.path) if record["step"] <= last_step]
        self.last: dict[str, Any] = kept[-1] if kept else {}
        if not is_main():
            return
        self._rewrite(kept)
        self._events = EventFile(folder / "tensorboard", last_step + 1)

    def write(self, step: int, values: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Writes a step.

        Args:
          step: its number.
          values: metrics by name.
          samples: what TensorBoard and the mirror show besides.

        Raises:
          UnwrittenError: the disk is full, for example; the message names the folder and the remedy.
        """
        again = step == self.last.get("step")
        self.last = (self.last if again else {"step": step}) | dict(values)
        if not is_main():
            return
        if again:
            self._rewrite([*read_metrics(self.path)[:-1], self.last])
        try:
            if not again:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self.last) + "\n")
            self._events.write(step, values, samples)
        except OSError as error:
            raise unwritten(self.path.parent, error) from error
        if self._mirror is not None:
            self._mirror.write(step, values, samples)

    def _rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in records))

    def close(self) -> None:
        """Closes the files."""
        if not is_main():
            return
        with contextlib.suppress(OSError):  # `write` has said so, and here it would hide another error
            self._events.close()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics.jsonl; a last line that was cut off in the middle is left out.

    Args:
      path: of the file.

    Returns:
      Its records, each with "step"; none where there is no such file.

    Example:
      >>> read_metrics(Path("no_such_run/metrics.jsonl"))
      []
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(parse_json(line, str(path)))
    return records
