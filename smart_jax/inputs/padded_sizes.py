"""The sizes that batches are padded to: few, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Iterable


def check_sizes(**sizes: tuple[int, int]) -> None:
    """Raises ValueError where a size is less than what the items need; each is (size, need)."""
    for name, (size, need) in sizes.items():
        if size < need:
            raise ValueError(f"{name} is {size}, but the items need {need}")


def octaves(smallest: int, largest: int) -> list[int]:
    """Returns smallest, 1.5 times it, twice it, three times it, ...: at most a third of a padded item is padding."""
    powers = [smallest << i for i in range(max(0, (largest // smallest).bit_length()))]
    return sorted(powers + [p + p // 2 for p in powers])


def buckets(sizes: Iterable[int], largest: int, unit: int) -> tuple[int, ...]:
    """Returns the sizes as ascending multiples of `unit` below `largest`, and `largest`."""
    rounded = {-(-size // unit) * unit for size in sizes}
    return (*sorted(size for size in rounded if size < largest), largest)


def bucket(n: int, buckets: tuple[int, ...], unit: str) -> int:
    """Returns the smallest bucket that holds n; raises ValueError where none does."""
    for size in buckets:
        if n <= size:
            return size
    raise ValueError(f"an item has {n} {unit}, the largest bucket holds {buckets[-1]}: raise max_length")
