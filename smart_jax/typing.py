"""Array aliases and the dimension letters.

Letters, fixed once for the whole project; rare axes are words ("layers", "half", "slots"):

  B  rows of a batch, or the queries of one
  L  positions of a padded row: of a sequence, or of a document's tokens
  P  tokens of a padded query
  N  items: what an `Embeddings` holds, documents; Nq and Nd where both sides are meant
  K  documents of each query, its positive first; k results of each query
  T  packed tokens of all items
  H  width of the model's hidden states
  D  width of the token vectors
  A  attention heads, C width of a head
  G  bins of vision patches, V patches of a bin, E values of a patch
"""

from __future__ import annotations

from typing import Any

Array = Any  # NumPy on the host, jax inside jit
