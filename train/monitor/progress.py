"""Output of a run: a bar, single lines, a table of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tqdm.auto import tqdm

from smart_jax.runtime import is_main


class Progress:
    """Bar over the run's examples with loss, examples/s and remaining time.

    Example:
      >>> from contextlib import closing
      >>> with closing(Progress(start=0, steps=2, batch_size=8)) as progress:
      ...     progress.update(1, loss=0.5)
    """

    def __init__(self, start: int, steps: int, batch_size: int):
        """Shows the bar.

        Args:
          start: number of steps that are done.
          steps: number of steps of the run.
          batch_size: examples of a step.
        """
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
        """Goes on by one step; a loss that is not finite is not shown."""
        self._bar.set_description(f"step {step}/{self._steps}", refresh=False)
        if math.isfinite(loss):
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(self._size)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def announce(text: str) -> None:
    """Prints a text once, however many processes there are.

    Example:
      >>> announce("done")
      done
    """
    if is_main():
        print(text, flush=True)


def format_table(values: Mapping[str, float], title: str) -> str:
    """Returns a table of two columns, name and value, under a title.

    Example:
      >>> print(format_table({"loss": 0.25, "ndcg@5": 0.5}, "after step 1:"))
      after step 1:
        loss        0.2500
        ndcg@5      0.5000
    """
    width = max((len(name) for name in values), default=0)
    lines = [f"  {name:<{width}}  {value:10.4f}" for name, value in values.items()]
    return "\n".join([title, *lines])
