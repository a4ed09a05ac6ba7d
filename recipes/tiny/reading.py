"""Batches of the reading warm-up: pages with the characters that they show, and queries about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from recipes.tiny.architecture import PROMPT_PIECES, QUERY_PIECES
from recipes.tiny.canvas import Canvas
from recipes.tiny.docstrings import Docstring
from recipes.tiny.queries import wording_query
from recipes.tiny.typeset import CELL_HEIGHT, CELL_WIDTH, grid_codes, typeset_grid, wrap
from smart_jax import Encoder
from smart_jax.models import Batch


class ReadingBatch(NamedTuple):
    """Pages with what they show, and texts about them."""

    pages: Batch  # B tokenised pages of one image each
    texts: Batch  # B tokenised texts without an image
    characters: Int[np.ndarray, "B visual characters"]  # of each visual token: codes minus 32
    page_pieces: Bool[np.ndarray, "B pieces"]  # which pieces of the vocabulary the text of each page has
    text_pieces: Bool[np.ndarray, "B pieces"]  # and each text


class ReadingPage(NamedTuple):
    """A page, its characters, what it shows, and some of its words."""

    pixels: UInt8[np.ndarray, "height width 3"]
    codes: UInt8[np.ndarray, "rows columns"]
    shown: str
    query: str


def reading_batches(
    encoder: Encoder, docstrings: Sequence[Docstring], *, canvas: Canvas, batch_size: int, seed: int
) -> Iterator[ReadingBatch]:
    """Yields batches without end, all of one shape.

    Args:
      encoder: whose preprocessing and tokenizer are used.
      docstrings: of training modules.
      canvas: of the pages, in the style "grid".
      batch_size: B, pages of a batch and as many texts.
      seed: of all random choices.
    """
    rng = np.random.default_rng(seed)
    prepare = encoder.preprocessor
    page_length = canvas.characters // 8 + 10  # a visual token covers eight characters; the prompt has ten pieces
    draw = _drawer(docstrings, canvas, rng, lambda query: len(prepare.tokenizer(query)["input_ids"]) <= QUERY_PIECES)
    while True:
        pages = [next(draw) for _ in range(batch_size)]
        queries = [page.query for page in pages]
        yield ReadingBatch(
            pages=prepare.collate([prepare.tokenize(page.pixels) for page in pages], length=page_length),
            texts=prepare.collate([prepare.tokenize(query) for query in queries], length=QUERY_PIECES + PROMPT_PIECES),
            characters=by_visual_token(np.stack([page.codes for page in pages])),
            page_pieces=pieces_of(encoder, [page.shown for page in pages]),
            text_pieces=pieces_of(encoder, queries),
        )


def _drawer(
    docstrings: Sequence[Docstring], canvas: Canvas, rng: np.random.Generator, accept: Callable[[str], bool]
) -> Iterator[ReadingPage]:
    """Yields pages that are at least a quarter full and whose query is accepted."""
    rows, columns = canvas.height // CELL_HEIGHT, canvas.width // CELL_WIDTH
    while True:
        text = docstrings[int(rng.integers(len(docstrings)))].text
        start = int(rng.integers(0, max(1, len(text) - canvas.characters)))
        text = text[start : start + 2 * canvas.characters].partition(" ")[2] if start else text
        pixels, shown = typeset_grid(text, canvas.height, canvas.width)
        if len(shown) < canvas.characters // 4:
            continue
        query = wording_query(shown, rng)
        if accept(query):
            yield ReadingPage(pixels, grid_codes(wrap(text, rows, columns)[0], rows, columns), shown, query)


def by_visual_token(codes: UInt8[np.ndarray, "B rows columns"]) -> Int[np.ndarray, "B visual 8"]:
    """Returns the 2 x 4 characters that each visual token covers, in lower case.

    Example:
      >>> by_visual_token(np.full((1, 2, 4), ord("Q") - 32, np.uint8)).tolist() == [[[ord("q") - 32] * 8]]
      True
    """
    size, rows, columns = codes.shape
    lower = np.where((codes >= 33) & (codes <= 58), codes + 32, codes).astype(np.int32)
    blocks = lower.reshape(size, rows // 2, 2, columns // 4, 4).transpose(0, 1, 3, 2, 4)
    by_token: np.ndarray = blocks.reshape(size, rows * columns // 8, 8)
    return by_token


def pieces_of(encoder: Encoder, texts: Sequence[str]) -> Bool[np.ndarray, "texts pieces"]:
    """Says of each text which pieces of the vocabulary it has."""
    present = np.zeros((len(texts), encoder.config.text.vocab_size), bool)
    for i, ids in enumerate(encoder.preprocessor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]):
        present[i, ids] = True
    return present


def piece_weights(encoder: Encoder, docstrings: Sequence[Docstring]) -> Float[np.ndarray, " pieces"]:
    """Returns a third of each piece's inverse document frequency, between 0.07 and 2: rare pieces weigh more."""
    texts = [docstring.text[:300] for docstring in docstrings[::10]]
    counts = 1.0 + pieces_of(encoder, texts).sum(0)
    weights: np.ndarray = np.clip(np.log(len(texts) / counts), 0.2, 6.0) / 3
    return weights.astype(np.float32)
