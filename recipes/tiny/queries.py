"""Queries for pages: some of a page's own words, or the summary of what it says."""

from __future__ import annotations

import re

import numpy as np

from recipes.tiny.docstrings import Docstring

KINDS = ("wording", "meaning")
DROPPED = 0.25  # share of a wording query's words
QUERY_WORDS = (5, 8)
QUERY_CHARACTERS = 64  # of a wording query; identifiers joined by dots can be long


def wording_query(shown: str, rng: np.random.Generator) -> str:
    """Draws 5 to 8 consecutive words of what a page shows and drops a quarter of them at random; one always stays.

    Raises:
      ValueError: the page shows no word.

    Example:
      >>> wording_query("Return the value number seven of the table.", np.random.default_rng(1))
      'the number seven of the'
    """
    return wording_run(shown, rng)[0]


def wording_run(shown: str, rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
    """Draws a `wording_query`, and returns the characters start:stop of the page's text whose words it is of, too.

    Raises:
      ValueError: the page shows no word.

    Example:
      >>> shown = "Return the value number seven of the table."
      >>> query, (start, stop) = wording_run(shown, np.random.default_rng(1))
      >>> query, shown[start:stop]
      ('the number seven of the', 'the value number seven of the')
    """
    words = shown.split()
    if not words:
        raise ValueError("a page without words has no wording query")
    count = min(int(rng.integers(QUERY_WORDS[0], QUERY_WORDS[1] + 1)), len(words))
    start = int(rng.integers(0, len(words) - count + 1))
    run = words[start : start + count]
    kept = [word for word in run if rng.random() >= DROPPED] or run[:1]
    first = len(" ".join(words[:start])) + (start > 0)
    return " ".join(kept)[:QUERY_CHARACTERS].strip(), (first, first + len(" ".join(run)))


def meaning_texts(docstring: Docstring) -> tuple[str, str]:
    """Returns a docstring's summary as the query and its body as the page's text, the object's name masked in both.

    The page's text is empty where the docstring is nothing but a summary.
    """
    return without_name(docstring.summary, docstring.name), without_name(docstring.body, docstring.name)


def without_name(text: str, name: str, mask: str = "___") -> str:
    """Masks the last part of a dotted name wherever it stands as a word, in upper or lower case.

    Example:
      >>> without_name("Message.get returns it; target is kept.", "email.message.Message.get")
      'Message.___ returns it; target is kept.'
    """
    last = re.escape(name.rpartition(".")[2].strip("_"))
    if not last:
        return text
    return re.sub(rf"(?<![A-Za-z0-9])_*{last}_*(?![A-Za-z0-9])", mask, text, flags=re.IGNORECASE)
