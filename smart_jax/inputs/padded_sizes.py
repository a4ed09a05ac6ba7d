"""The sizes that batches are padded to: few, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

TWO_PER_OCTAVE = 1024  # tokens of a text up to which lengths are half an octave apart
SMALL_IMAGES = (64, 128, 256)  # patches
PAGE_STEP = 512  # patches between sizes of pages, and half of it from 2,048 to 4,096
FINE_PAGES = 8192  # patches from which sizes are a quarter of an octave apart
PROMPT = 24  # tokens around an image: the published models' prompts have fewer


class Shape(NamedTuple):
    """Padded shape of a batch.

    Attributes:
      length: tokens of a row.
      patches: patches of a bin; 0 = there is no image.
      shared: whether all rows of a device share a bin.

    Example:
      >>> Shape(1848, 7200).shared
      False
    """

    length: int
    patches: int = 0
    shared: bool = False


def text_sizes(largest: int) -> list[int]:
    """Returns the lengths that texts are padded to.

    Example:
      >>> text_sizes(4000)
      [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048]
    """
    doubled = [TWO_PER_OCTAVE << i for i in range(1, largest.bit_length())]
    return [n for n in (*octaves(32, TWO_PER_OCTAVE)[:-1], *doubled) if n < largest]


def page_sizes(largest_image: int, largest: int) -> list[int]:
    """Returns the numbers of patches that a row's are padded to.

    Pages of about one size are the bulk of what is encoded: up to an image's largest number of patches, sizes are a
    small step apart. That number is one of them, since all larger pages are made as large. Only several images, or a
    video, have more patches; sizes double there.

    Args:
      largest_image: most patches of an image.
      largest: most patches of an item.

    Example:
      >>> page_sizes(1100, 4400)
      [64, 128, 256, 512, 1024, 1100, 2048, 4096]
    """
    fine = [n for n in range(PAGE_STEP, FINE_PAGES + 1, PAGE_STEP // 2) if n % PAGE_STEP == 0 or 2048 < n < 4096]
    quarters = [(FINE_PAGES << i) // 4 * k for i in range(largest_image.bit_length()) for k in (5, 6, 7, 8)]
    doubled = [1 << i for i in range(largest.bit_length())]
    below = [n for n in (*SMALL_IMAGES, *fine, *quarters) if n < largest_image]
    return [*below, largest_image, *(n for n in doubled if n > largest_image)]


def budget_sizes(largest_image: int, largest: int) -> list[int]:
    """Returns the numbers of patches that a row's are padded to where every image is scaled to about as many.

    Rounding leaves an image at four fifths or more of the largest number, unless it is a narrow strip.

    Args:
      largest_image: most patches of an image.
      largest: most patches of an item.

    Example:
      >>> budget_sizes(2520, 9000)
      [1260, 2520, 5040]
    """
    return [
        largest_image // 2,
        *(largest_image << i for i in range(largest.bit_length()) if largest_image << i <= largest),
    ]


def page_shapes(sizes: Sequence[int], image: int, longest: int, unit: int) -> list[Shape]:
    """Returns a shape for each number of patches, whose length has room for them and a prompt.

    Text beyond that takes a larger one: few shapes, for some padding in what has both a long text and an image. The
    largest image has twice the room, since there are many as large, and the next shape is much larger.

    Args:
      sizes: numbers of patches.
      image: most patches of an image; rows may share a bin of so many, since a page may be the only one among texts.
      longest: most tokens of an item.
      unit: patches of a visual token.

    Example:
      >>> page_shapes([64, 7200], image=7200, longest=8192, unit=4)[:2]
      [Shape(length=40, patches=64, shared=False), Shape(length=1848, patches=7200, shared=False)]
    """
    of_rows = [Shape(min(n // unit + PROMPT * (2 if n == image else 1), longest), n) for n in sizes]
    return of_rows + [shape._replace(shared=True) for shape in of_rows if shape.patches == image]


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
