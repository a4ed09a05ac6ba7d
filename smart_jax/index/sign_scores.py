"""Late interaction by the signs of the tokens' components: one bit each, compared by Hamming distance."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt32

from smart_jax.index.token_runs import runs
from smart_jax.retrieval import Embeddings
from smart_jax.runtime import bounded

WORD = 32  # bits
BLOCK_TOKENS, BLOCK_DOCUMENTS = 2**16, 2**12  # of one call of the compiled function, at most
QUERY_TOKENS = 256  # compared at once
STEP = 16  # query tokens: their number is rounded up to a multiple, so that few programs are compiled


def words_of(width: int) -> int:
    """Returns how many words hold the signs of a token of so many components."""
    return -(-width // WORD)


def sign_words(tokens: Num[np.ndarray, "T D"]) -> UInt32[np.ndarray, "T words"]:
    """Returns a bit for each component, 1 = above 0; bits behind the last component are 0.

    Example:
      >>> sign_words(np.float32([[0.5, -0.5, 0.1], [-1, 0, 0]])).tolist()
      [[160], [0]]
    """
    packed = np.packbits(tokens > 0, axis=1)
    padded = np.zeros((len(tokens), 4 * words_of(tokens.shape[1])), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u4")


def sign_scores(
    queries: Embeddings,
    words: UInt32[np.ndarray, "T words"],
    offsets: Int[np.ndarray, " bounds"],
    mask: Bool[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, "Nq N"]:
    """Returns the late scores, float32, with cos(pi * h / D) in the place of cosines, h = number of signs that differ.

    That is what a cosine is on the average if signs are those of random directions.

    Args:
      queries: any number of them; width D.
      words: the signs of each token.
      offsets: of the documents, each with at least one token.
      mask: which documents are scored; the others have 0. None = all.

    Example:
      >>> queries = Embeddings(np.zeros((1, 4), np.float32), np.float32([[1, 1, 1, 1]]), np.array([0, 1]))
      >>> words = sign_words(np.float32([[1, 1, 1, -1], [1, 1, -1, -1], [-1, -1, -1, -1]]))
      >>> sign_scores(queries, words, np.array([0, 2, 3])).round(2)
      array([[ 0.71, -1.  ]], dtype=float32)
    """
    width = queries.tokens.shape[1]
    cosines = np.cos(np.pi * np.arange(width + 1) / width).astype(np.float32)
    scores = np.zeros((len(queries), len(offsets) - 1), np.float32)
    for first, last in runs(queries.offsets, QUERY_TOKENS):
        some = queries[first:last]
        asked = np.zeros((-(-len(some.tokens) // STEP) * STEP, words.shape[1]), np.uint32)
        asked[: len(some.tokens)] = sign_words(some.tokens)
        for documents, block, bounds in _blocks(words, offsets, mask):
            placed = jax.device_put((asked, block, bounds), _host())
            fewest = np.asarray(_fewest_differences(*placed))[: len(documents), : len(some.tokens)]
            sums = np.add.reduceat(cosines[fewest], some.offsets[:-1], axis=1)
            scores[first:last, documents] = (sums / some.lengths.astype(np.float32)).T
    return scores


@bounded
@jax.jit
def _fewest_differences(
    asked: UInt32[jax.Array, "P words"], words: UInt32[jax.Array, "T words"], bounds: Int[jax.Array, "N 2"]
) -> UInt32[jax.Array, "N P"]:
    """Returns the smallest Hamming distance of each query token to the tokens between each document's bounds.

    A loop over tokens, of which a processor compares each with all of the query in its vector registers.
    """
    columns = asked.T

    def of_document(bound: Int[jax.Array, " 2"]) -> UInt32[jax.Array, " P"]:
        def step(token: Int[jax.Array, ""], fewest: UInt32[jax.Array, " P"]) -> UInt32[jax.Array, " P"]:
            differences = jnp.zeros_like(fewest)
            for i in range(len(columns)):  # written out: a sum over an axis is not kept in registers
                differences += jax.lax.population_count(words[token, i] ^ columns[i])
            return jnp.minimum(fewest, differences)

        most = jnp.full(columns.shape[1], jnp.iinfo(jnp.uint32).max, jnp.uint32)
        found: jax.Array = jax.lax.fori_loop(bound[0], bound[1], step, most)
        return found

    of_all: jax.Array = jax.lax.map(of_document, bounds)
    return of_all


def _blocks(
    words: UInt32[np.ndarray, "T words"], offsets: Int[np.ndarray, " bounds"], mask: Bool[np.ndarray, " N"] | None
) -> Iterator[tuple[Int[np.ndarray, " n"], UInt32[np.ndarray, "block words"], Int[np.ndarray, "N 2"]]]:
    """Yields documents, a window of the signs that theirs lie in, and their bounds in it; of few shapes."""
    documents = np.arange(len(offsets) - 1) if mask is None else np.flatnonzero(mask)
    bounds = np.stack([offsets[:-1], offsets[1:]], axis=1)[documents]
    first = 0
    while first < len(documents):
        begin = int(bounds[first, 0])
        last = int(np.searchsorted(bounds[:, 1], begin + BLOCK_TOKENS, side="right"))
        last = min(max(last, first + 1), first + BLOCK_DOCUMENTS)
        end = int(bounds[last - 1, 1])
        block = np.zeros((_power_of_two(end - begin), words.shape[1]), np.uint32)
        block[: end - begin] = words[begin:end]
        inside = np.zeros((_power_of_two(last - first), 2), np.int32)
        inside[: last - first] = bounds[first:last] - begin
        yield documents[first:last], block, inside
        first = last


def _host() -> jax.Device:
    """Returns the processor, which is nearer to the files than an accelerator is, if jax knows it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # it was told of others only
        return jax.local_devices()[0]


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
