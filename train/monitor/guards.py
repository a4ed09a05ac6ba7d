"""Guards that end a run before its last step: a loss that is not finite, and SIGTERM."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.monitor.progress import announce


class LossGuard:
    """Stops the run where loss or gradient are not finite; they are read one step late, while the device computes.

    Attributes:
      last: the loss that was read last; NaN before the first one.

    Example:
      >>> guard = LossGuard()
      >>> guard.push(1, ["page 1", "page 2"], jax.numpy.float32("nan"), jax.numpy.float32(0.5))
      >>> try:
      ...     guard.flush()
      ... except FloatingPointError as error:
      ...     print(str(error).partition(".")[0])
      loss is nan at step 1, on the examples page 1, page 2
    """

    def __init__(self, allowed: int = 0) -> None:
        """Takes how many such steps may follow one another; their updates the optimizer leaves out."""
        self._pending: tuple[int, Sequence[str], dict[str, jax.Array]] | None = None
        self._allowed, self._in_a_row = allowed, 0
        self.last = math.nan

    def push(self, step: int, ids: Sequence[str], loss: jax.Array, grad_norm: jax.Array) -> None:
        """Checks the step before this one, and keeps this one for the next call.

        Args:
          step: its number.
          ids: of the examples of its batch.
          loss: scalar, which need not be computed yet.
          grad_norm: likewise.

        Raises:
          FloatingPointError: as `flush`.
        """
        self.flush()
        self._pending = (step, ids, {"loss": loss, "gradient's norm": grad_norm})

    def flush(self) -> None:
        """Checks the step that was pushed last.

        Raises:
          FloatingPointError: its loss or gradient is not finite, and more such steps follow one another than are
            allowed; the message has the step and the ids of its examples.
        """
        if self._pending is None:
            return
        step, ids, values = self._pending
        on_host = {name: float(jax.device_get(value)) for name, value in values.items()}  # in this order
        self._pending, self.last = None, on_host["loss"]
        wrong = [f"{name} is {value}" for name, value in on_host.items() if not np.isfinite(value)]
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
    """Context in which SIGTERM, as it is sent before a machine is taken away, asks the loop to save and end.

    With several processes it is enough that one of them gets it: all end after the same step.

    Example:
      >>> with StopRequest() as stop:
      ...     stop.asked(step=1)
      False
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None  # what `signal.signal` returns: a function, a number or None

    def __enter__(self) -> StopRequest:
        # With several processes jax's own service sees the signal and agrees on a step.
        self._signals = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._signals:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._signals:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def asked(self, step: int) -> bool:
        """Returns whether the run should end after this step."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
