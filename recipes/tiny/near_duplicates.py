"""Near-duplicates among docstrings, found by the runs of four words that they share."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from recipes.tiny.docstrings import Docstring

SHINGLE_WORDS = 4
OWNERS_AT_MOST = 64  # a phrase of more docstrings identifies none of them; the bound keeps the time linear


def without_near_duplicates(
    docstrings: Iterable[Docstring], known: Iterable[Docstring] = (), *, threshold: float = 0.5
) -> list[Docstring]:
    """Drops every docstring of which a large part stands in one docstring before it, or in one of `known`.

    What counts is containment, not Jaccard similarity: a short copy of a long page is a duplicate, too. Words are
    compared in lower case and without punctuation.

    Args:
      docstrings: in the order in which they are kept.
      known: docstrings that none of the kept ones may repeat.
      threshold: share of a docstring's runs of four words from which on it is dropped, if a single docstring has them
        all.

    Returns:
      The docstrings that are kept, in their order.

    Example:
      >>> from recipes.tiny import Docstring
      >>> first = Docstring("m", "m.f", "Return the number of lines that the table holds.", "")
      >>> copy = Docstring("m", "m.g", "return the number of lines that the table holds", "")
      >>> other = Docstring("m", "m.h", "Close the file and flush its buffers.", "")
      >>> [docstring.name for docstring in without_near_duplicates([first, copy, other])]
      ['m.f', 'm.h']
    """
    owners: dict[int, list[int]] = defaultdict(list)  # of each shingle, the numbers of the docstrings that have it
    for number, docstring in enumerate(known):
        for shingle in shingles(docstring.text):
            owners[shingle].append(number)
    kept: list[Docstring] = []
    for number, docstring in enumerate(docstrings, start=1 << 40):  # no number of a known docstring
        own = shingles(docstring.text)
        if _most_shared(own, owners) >= threshold * len(own):
            continue
        kept.append(docstring)
        for shingle in own:
            if len(owners[shingle]) < OWNERS_AT_MOST:
                owners[shingle].append(number)
    return kept


def _most_shared(own: set[int], owners: dict[int, list[int]]) -> int:
    """Returns how many of the shingles the docstring has that shares most of them."""
    sharing = [number for shingle in own for number in owners.get(shingle, ())]
    return int(np.unique(sharing, return_counts=True)[1].max()) if sharing else 0


def shingles(text: str) -> set[int]:
    """Returns the hashes of all runs of four words, the same on every machine; a shorter text is one run.

    Example:
      >>> len(shingles("One two three four five"))
      2
      >>> shingles("Close it.") == shingles("close it")
      True
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    runs = [words[i : i + SHINGLE_WORDS] for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]
    return {zlib.crc32(" ".join(run).encode()) for run in runs}
