"""Batches of a source's examples, shuffled anew each epoch, for any number of processes."""

from __future__ import annotations

from typing import Any

import grain
import jax
from absl import flags

from train.data.dataset import Example, Source


class Examples:
    """Iterator over batches of a source, shuffled anew each epoch; its position can be saved and restored.

    What is in batch k depends on `seed` alone, not on the number of processes or workers; each process reads its part
    of it. Examples that do not fill a batch at the end of an epoch are left out of that epoch, so no batch spans two
    epochs and none has an example twice.

    Attributes:
      batches_per_epoch: number of batches in a pass over the source.

    Example:
      >>> from train.data import Example
      >>> source = [Example(str(i), {"text": f"query {i}"}, {"text": f"document {i}"}) for i in range(4)]
      >>> batches = Examples(source, 2, shuffle=False)
      >>> [example.id for example in next(batches)], batches.get_state()["batches"]
      (['0', '1'], 1)
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
        process_index: int | None = None,
        process_count: int | None = None,
        workers: int = 0,
    ) -> None:
        """Starts before the first batch.

        Args:
          source: `open_split(...)`, or a list of examples.
          batch_size: examples of the global batch, over all processes.
          seed: of the shuffling.
          epochs: passes over the source; None = without end.
          shuffle: False = the source's order, as for a validation split.
          process_index: number of the part of each batch that this process reads; None = jax's number of the process.
          process_count: number of parts; None = jax's number of processes.
          workers: processes that read; 0 = this one, with two threads.

        Raises:
          ValueError: a batch of fewer than 2 examples, which has no negatives; one that does not divide among the
            processes; or one that is larger than the source.
        """
        index = jax.process_index() if process_index is None else process_index
        count = jax.process_count() if process_count is None else process_count
        _check_batch(len(source), batch_size, index, count)
        self.batches_per_epoch = len(source) // batch_size
        self._settings = {"examples": len(source), "batch_size": batch_size, "seed": seed, "shuffle": shuffle}
        self._workers = workers
        # Batches of numbers, not of examples: a process reads its part alone. The parts are runs of neighbours, so that
        # the rows of the global batch are in the same order however many processes there are.
        numbers = grain.MapDataset.range(len(source)).seed(seed)
        numbers = numbers.shuffle() if shuffle else numbers
        numbers = numbers[: self.batches_per_epoch * batch_size].batch(batch_size)
        size = batch_size // count
        part = slice(index * size, (index + 1) * size)
        self._batches = numbers.map(lambda batch: [source[int(i)] for i in batch[part]]).repeat(epochs)
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        # A few batches ahead: the library's own default of 500 would hold gigabytes of page images.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        dataset = self._batches[position:].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads absl's flags; outside of absl's app they keep their defaults
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        self._iterator = iter(dataset)

    def __iter__(self) -> Examples:
        return self

    def __next__(self) -> list[Example]:
        """Returns this process's examples of the next batch."""
        batch = next(self._iterator)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch given out, in values that JSON can hold."""
        return {**self._settings, "batches": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `get_state` was called.

        Args:
          state: what it returned.

        Raises:
          ValueError: the state is of other data or other settings, which the message names.
        """
        changed = [
            f"{key}: {state.get(key)!r} then, {value!r} now"
            for key, value in self._settings.items()
            if state.get(key) != value
        ]
        position = state.get("batches")
        if changed or not isinstance(position, int) or position < 0:
            raise ValueError(
                f"the saved data position does not fit ({'; '.join(changed) or f'batches: {position!r}'}): resume with "
                "the data and settings of the first start, or start a new run"
            )
        self._start(position)


def _check_batch(examples: int, batch_size: int, index: int, count: int) -> None:
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: the other documents of a batch are the negatives, so it needs >= 2")
    if not 0 <= index < count:
        raise ValueError(f"process_index={index} of process_count={count}: expected 0 <= index < count")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} does not divide among {count} processes: choose a multiple")
    if examples < batch_size:
        raise ValueError(f"batch_size={batch_size} exceeds the {examples} examples of the data: choose a smaller one")
