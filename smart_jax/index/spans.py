"""Words of an index's own texts, in place of queries."""

from __future__ import annotations

import numpy as np

from smart_jax.index.store import Store

COUNT = 200
LONGEST = 2  # words: longer ones follow their document more than what users ask


def span_queries(store: Store, seed: int = 0) -> list[dict[str, str]]:
    """Returns one or two words that follow one another in a text, from up to 200 items, as items.

    Raises:
      ValueError: no item has a text.
    """
    rng = np.random.default_rng(seed)
    with store.catalog.reading() as db:
        query = "SELECT item.row FROM item JOIN content ON content.row = item.row WHERE trim(content.text) != ''"
        rows = [row for (row,) in db.execute(f"{query} ORDER BY item.row")]
        chosen = [rows[i] for i in np.sort(rng.permutation(len(rows))[:COUNT])]
        texts = [db.execute("SELECT text FROM content WHERE row = ?", (row,)).fetchone()[0] for row in chosen]
    spans = []
    for words in filter(None, (text.split() for text in texts)):
        length = min(len(words), int(rng.integers(1, LONGEST + 1)))
        first = int(rng.integers(len(words) - length + 1))
        spans.append({"text": " ".join(words[first : first + length])})  # which may be the name of a file
    if not spans:
        raise ValueError(f"the items of '{store.folder}' have no texts to draw queries from: give queries")
    return spans
