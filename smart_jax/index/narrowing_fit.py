"""Principal components that an index's tokens are told in, fitted on its first items."""

from __future__ import annotations

from smart_jax.index.engine import Engine
from smart_jax.index.value_cap import Narrowing
from smart_jax.retrieval import Embeddings

LEAST = 4  # times the width: tokens that it is fitted on


def note_narrowing(engine: Engine, first: Embeddings, width: int | None) -> None:
    """Fits the components on the first items, once; by a writer, before they are put there.

    Args:
      engine: of the index, which makes tokens narrower once it knows how.
      first: as the model makes them.
      width: of stored tokens; None = that of the model's.

    Raises:
      ValueError: there are too few tokens, or they are not wider.
    """
    if width is None or engine.fact("narrowing") is not None:
        return
    tokens, wide = first.tokens.shape
    if width >= wide:
        raise ValueError(f"pca is {width}, and the model's tokens have {wide} components: give fewer, or leave it out")
    if tokens < LEAST * width:
        raise ValueError(
            f"the first items have {tokens} tokens, too few to find {width} principal components, which take at least "
            f"{LEAST * width}: add more items at once, or make the index with a smaller pca"
        )
    engine.set_facts({"narrowing": Narrowing.fit(first, width).to_json()})
