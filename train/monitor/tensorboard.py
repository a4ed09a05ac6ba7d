"""Event files for TensorBoard, written at once.

The writer of tensorboardX hands events to a thread that keeps them for two minutes: a killed process loses them, and
where the disk is full the thread dies and the run waits for it for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class Sample(NamedTuple):
    """Text and picture that show a metric's meaning, such as a query with the page that was ranked first.

    Example:
      >>> Sample("samples/worst_1", "**query** 'What is a page?'", Image.new("RGB", (2, 2))).picture.size
      (2, 2)
    """

    name: str  # "samples/worst_1"
    text: str  # Markdown
    picture: Image.Image | None  # RGB


class EventFile:
    """New event file in a folder; TensorBoard hides what earlier files have at `first_step` and after it."""

    def __init__(self, folder: Path, first_step: int):
        """Creates the file, and the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{first_step}")
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Writes the metrics and samples of a step; raises OSError where the disk is full, for example."""
        for name, value in values.items():
            self._add(step, summary.scalar(name.replace("@", "_at_"), value))  # TensorBoard takes no @
        for sample in samples:
            self._add(step, summary.text(sample.name, sample.text))
            if sample.picture is not None:
                self._add(step, summary.image(sample.name, np.asarray(sample.picture), dataformats="HWC"))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, step: int, what: Summary) -> None:
        self._write(Event(step=step, summary=what))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
