"""Batches of a source's examples, shuffled anew each epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import grain
import jax

from train.data.dataset import Example, Source, Split
from train.data.outlines import Outline


class Share(Sequence[Example]):
    """A process's examples of a batch, each of which is read where it is asked for.

    Example:
      >>> source = [Example(str(i), {"text": "a query"}, {"text": f"page {i}"}) for i in range(9)]
      >>> share = Share(source, numbers=[4, 8, 2, 6], part=slice(2, 4))
      >>> [example.id for example in share]
      ['2', '6']
    """

    def __init__(self, source: Source, numbers: Sequence[int], part: slice) -> None:
        """Takes the numbers of the whole batch's examples, and which of them are this process's."""
        self._source, self._numbers, self._own = source, numbers, numbers[part]

    @property
    def is_whole(self) -> bool:
        """Whether these are all examples of the batch."""
        return len(self._own) == len(self._numbers)

    def __len__(self) -> int:
        return len(self._own)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._source[i] for i in self._own[index]]
        return self._source[self._own[index]]

    @property
    def has_videos(self) -> bool:
        """Whether documents or queries of the data may be videos."""
        return isinstance(self._source, Split) and self._source.has_videos

    def of_batch(self, index: int) -> Example:
        """Reads an example of the whole batch."""
        return self._source[self._numbers[index]]

    def outlines(self) -> list[Outline] | None:
        """Returns outlines of the whole batch's examples; None where they do not tell what there is to see."""
        if not isinstance(self._source, Split) or self.has_videos:
            return None
        outlines = [self._source.outline(i) for i in self._numbers]
        known = [outline for outline in outlines if outline is not None]
        return known if len(known) == len(outlines) else None


class Examples:
    """Iterator over batches of a source, shuffled anew each epoch; its position can be saved and restored.

    What is in batch k depends on `seed` alone, not on the number of processes; each process reads its part of it.
    Examples that do not fill a batch at the end of an epoch are left out of that epoch, so no batch spans two epochs
    and none has an example twice.

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

        Raises:
          ValueError: a batch of fewer than 2 examples, which has no negatives; one that does not divide among the
            processes; or one that is larger than the source.
        """
        index = jax.process_index() if process_index is None else process_index
        count = jax.process_count() if process_count is None else process_count
        _check_batch(len(source), batch_size, index, count)
        self.batches_per_epoch = len(source) // batch_size
        self._settings = {"examples": len(source), "batch_size": batch_size, "seed": seed, "shuffle": shuffle}
        # The parts are runs of neighbours, so that the rows of the global batch are in the same order however many
        # processes there are.
        size = batch_size // count
        self._source, self._part = source, slice(index * size, (index + 1) * size)
        numbers = grain.MapDataset.range(len(source)).seed(seed)
        numbers = numbers.shuffle() if shuffle else numbers
        self._numbers = numbers[: self.batches_per_epoch * batch_size].batch(batch_size).repeat(epochs)
        self._position = 0

    def __iter__(self) -> Examples:
        return self

    def __next__(self) -> Share:
        """Returns this process's examples of the next batch."""
        if self._position >= len(self._numbers):
            raise StopIteration
        numbers = self._numbers[self._position]
        self._position += 1
        return Share(self._source, [int(i) for i in numbers], self._part)

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
        self._position = position


def _check_batch(examples: int, batch_size: int, index: int, count: int) -> None:
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: the other documents of a batch are the negatives, so it needs >= 2")
    if not 0 <= index < count:
        raise ValueError(f"process_index={index} of process_count={count}: expected 0 <= index < count")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} does not divide among {count} processes: choose a multiple")
    if examples < batch_size:
        raise ValueError(f"batch_size={batch_size} exceeds the {examples} examples of the data: choose a smaller one")
