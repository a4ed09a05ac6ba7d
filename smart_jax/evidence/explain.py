"""`explain`: why a document has its score for a query."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from smart_jax.evidence.evidence import Evidence, Weights
from smart_jax.evidence.similarities import best_tokens, usual_cosines
from smart_jax.evidence.traced import Traced, TracingModel, trace
from smart_jax.inputs import ItemLike
from smart_jax.option_names import known_options
from smart_jax.retrieval import Embeddings


@known_options
def explain(
    query: ItemLike | Traced,
    document: ItemLike | Traced,
    *,
    model: TracingModel | None = None,
    others: Embeddings | Float[np.ndarray, " P"] | None = None,
    instruction: str | None = None,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
) -> Evidence:
    """Returns the evidence of a document for a query: which part of it speaks to which word, and what that is worth.

    The score (arXiv:2605.24938), which `smart_jax.score` computes, is taken apart exactly:

        score = pooled_weight * cos(pooled) + sum over the P query tokens of  late_weight / P * max over l of cos(p, l)

    so that the pooled part and the tokens' shares add up to it. Where a model pools by a mean of token states, as
    sentence-transformers and jina-embeddings-v4 do, the pooled part is told by token, too. Shares say what counts in
    the score, not what matters: "the" matches every document. With `others` each token has its *lift*, how much better
    it matches here than elsewhere, and that is what is drawn.

    Args:
      query, document: items as the model takes them, or traced ones (`smart_jax.evidence.trace`), which are not encoded
        again; an index makes them of what it stores.
      model: encodes what is not traced.
      others: embeddings of some tens of other documents, or their `usual_cosines` for this query.
      instruction: of the query, where that is encoded here.
      pooled_weight, late_weight: as in `smart_jax.score`.

    Returns:
      `Evidence`; a notebook shows it.

    Raises:
      ValueError: an item is to be encoded and there is no model, an item cannot be read, vectors have other widths or
        not as many usual cosines, or weights are not finite or both 0.
      TypeError, OSError: an item cannot be read.

    Example:
      >>> import smart_jax
      >>> from PIL import Image, ImageDraw
      >>> page = Image.new("RGB", (256, 128), "white")
      >>> ImageDraw.Draw(page).text((8, 72), "return the revenue by region", fill="black")
      >>> evidence = smart_jax.explain("revenue by region", page, model=smart_jax.load("tiny"))
      >>> "".join(token.text for token in evidence.tokens[2:-1])
      'revenuebyregion'
      >>> abs(evidence.score - evidence.pooled - sum(token.share for token in evidence.tokens)) < 1e-9
      True
      >>> evidence.picture().width
      960
    """
    weights = Weights(pooled_weight, late_weight)
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise ValueError(f"pooled_weight is {pooled_weight} and late_weight {late_weight}: both finite, one not 0")
    q = query if isinstance(query, Traced) else trace(_needed(model), query, instruction=instruction, query=True)
    d = document if isinstance(document, Traced) else trace(_needed(model), document)
    _check_widths(q.embeddings, d.embeddings)
    usual = usual_cosines(q.embeddings, others) if isinstance(others, Embeddings) else others
    if usual is not None and len(usual) != len(q.embeddings.tokens):
        raise ValueError(
            f"others are {len(usual)} usual cosines for {len(q.embeddings.tokens)} query tokens: compute them for this "
            "query (smart_jax.evidence.usual_cosines)"
        )
    best = best_tokens(q.embeddings, d.embeddings)
    return Evidence(q, d, best, None if usual is None else best.cosines - usual, weights)


def _needed(model: TracingModel | None) -> TracingModel:
    if model is None:
        raise ValueError("no model: pass model=smart_jax.load(...), or items that smart_jax.evidence.trace made of one")
    return model


def _check_widths(q: Embeddings, d: Embeddings) -> None:
    widths = [(e.pooled.shape[1], e.tokens.shape[1]) for e in (q, d)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"pooled and token vectors of the query have widths {widths[0]}, of the document {widths[1]}: encode both "
            "with the same model"
        )
