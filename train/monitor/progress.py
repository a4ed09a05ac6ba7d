"""What a run prints: a bar, single lines, a table of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tqdm import tqdm

from smart_jax.runtime import is_main


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


def format_table(values: Mapping[str, float], title: str) -> str:
    """Two columns, name and value."""
    width = max((len(name) for name in values), default=0)
    lines = [f"  {name:<{width}}  {value:10.4f}" for name, value in values.items()]
    return "\n".join([title, *lines])
