"""An encoded item whose token vectors can be traced to what they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image

from smart_jax.evidence.pdf_page import PageText, page_scale
from smart_jax.evidence.token_sources import Cell, Span, TokenSources
from smart_jax.inputs import ImageLike, ItemLike, Origins, Preprocessor, open_rgb, parse_item
from smart_jax.retrieval import Embeddings, Retriever

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

# A picture that is opened where it is drawn.
Picture = ImageLike | Callable[[], Image.Image]

PARTS_ERROR = 0.02  # length of the difference of summed states and the pooled vector: more, and it is no such sum


class TracingModel(Retriever, Protocol):
    """A model whose tokens can be traced: `smart_jax.Encoder` is one.

    Example:
      >>> import smart_jax
      >>> def shows(model: TracingModel) -> bool:
      ...     return "image" in model.preprocessor.modalities
      >>> shows(smart_jax.load("tiny"))
      True
    """

    @property
    def preprocessor(self) -> Preprocessor:
        """Turns items into batches."""

    def token_states(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False
    ) -> Float[np.ndarray, "L H"]:
        """Returns the last states of all tokens of an item."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Traced:
    """An encoded item with what its tokens stand for: what `explain` compares.

    `trace` makes one of an item and a model, an index of what it stores.

    Attributes:
      embeddings: of the one item, of any dtype.
      sources: of its tokens.
      texts: the item's texts, of which the sources name characters.
      pictures: a picture for each frame of the sources: an image, a path, or a function that opens one, of audio its
        spectrogram; empty = there is nothing to draw on, and evidence has numbers only.
      page: where the characters of the first text stand on a page that is the only picture, and no frame.
      parts: float32 [tokens, pooled width], where the pooled vector is a mean of token states: what each token brings
        to it. Their sum is the pooled vector but for what tokens bring that are not kept.

    Raises:
      ValueError: the parts do not fit together.

    Example:
      >>> import smart_jax
      >>> traced = smart_jax.evidence.trace(smart_jax.load("tiny"), "errors by code")
      >>> traced
      Traced(TokenSources(7 tokens: 3 of the prompt, 0 cells of 0 frames, 4 of texts))
      >>> [traced.label(token) for token in range(2, 6)]
      ['error', 's', 'by', 'code']
    """

    embeddings: Embeddings
    sources: TokenSources
    texts: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    page: PageText | None = None
    parts: Float[np.ndarray, "tokens pooled"] | None = None

    def __post_init__(self) -> None:
        if len(self.embeddings) != 1:
            raise ValueError(f"embeddings are of {len(self.embeddings)} items: trace one at a time, such as pages[3]")
        if (tokens := len(self.embeddings.tokens)) != len(self.sources):
            raise ValueError(
                f"the item has {tokens} token vectors, but its sources name {len(self.sources)}: make both of the same "
                "item, by the same model"
            )
        wanted = len(self.sources.frames) if self.page is None else 1
        if self.pictures and len(self.pictures) != wanted:
            raise ValueError(f"there are {len(self.pictures)} pictures for {wanted} frames: give one for each, or none")
        if self.parts is not None and self.parts.shape != (tokens, self.embeddings.pooled.shape[1]):
            raise ValueError(f"parts have shape {self.parts.shape}: they must be a pooled vector for each token")

    def __repr__(self) -> str:
        return f"Traced({self.sources!r})"

    def label(self, token: int) -> str:
        """Returns a word or two for a vector: the characters, the cell, or the prompt's words that it stands for."""
        labels = [self._label(member) for member in self.sources.members(token)]
        return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"

    def _label(self, token: int) -> str:
        if (piece := self.sources.piece(token)) is not None:
            return " ".join(piece.split())
        place = self.sources.place(token)
        if isinstance(place, Span):
            text = self.texts[place.text] if place.text < len(self.texts) else ""
            return text[place.start : place.stop] or f"characters {place.start} to {place.stop}"
        assert place is not None  # it has a piece otherwise
        frame = self.sources.frames[place.frame]
        if (moment := self.moment(token)) is not None:
            return f"{frame_name(frame.medium, frame.number, None)}, {moment[0]:.2f} to {moment[1]:.2f} s"
        return f"{frame_name(frame.medium, frame.number, frame.seconds)}, row {place.row}, column {place.column}"

    def moment(self, token: int) -> tuple[float, float] | None:
        """Returns the first second of a clip, and the last, that a kept token stands for; None = it is not of audio."""
        place = self.sources.place(token)
        if not isinstance(place, Cell) or self.sources.frames[place.frame].medium != "audio":
            return None
        frame = self.sources.frames[place.frame]
        each = (frame.seconds or 0.0) / frame.columns
        return place.column * each, (place.column + 1) * each

    def open_picture(self, number: int) -> Image.Image:
        """Returns one of the pictures, in RGB; of PDFs and videos it is made now.

        Raises:
          IndexError: there is no such picture.
          OSError, ValueError: its file is gone or damaged.
        """
        picture = self.pictures[number]
        return open_rgb(picture() if callable(picture) else picture, name=f"picture {number}")


def frame_name(medium: str, number: int, seconds: float | None) -> str:
    """Returns a frame's name: "image 1", "video 2 at 3.5 s", "audio 1"; counted from 1."""
    return f"{medium} {number + 1}" + ("" if seconds is None or medium == "audio" else f" at {seconds:.1f} s")


def trace(model: TracingModel, item: ItemLike, *, instruction: str | None = None, query: bool = False) -> Traced:
    """Encodes one item so that each of its token vectors can be traced to what it stands for.

    Args:
      model: `smart_jax.load` gives one.
      item: as the model takes it.
      instruction: used if the item carries none of its own.
      query: whether it is a query.

    Raises:
      TypeError, ValueError, OSError: the item cannot be read.

    Example:
      >>> import smart_jax
      >>> from PIL import Image
      >>> trace(smart_jax.load("tiny"), Image.new("RGB", (256, 128), "white"))
      Traced(TokenSources(35 tokens: 3 of the prompt, 32 cells of 1 frames, 0 of texts))
    """
    if not hasattr(model, "preprocessor") or not hasattr(model, "token_states"):
        raise TypeError(
            f"model is a {type(model).__name__}: tokens are traced of a smart_jax.Encoder, see smart_jax.load"
        )
    item = parse_item(item)
    how: dict[str, Any] = {"instruction": instruction, "query": query}
    origins = model.preprocessor.origins(item, **how)
    encode = model.encode_query if query else model.encode_document
    embeddings = encode([item], instruction=instruction, progress=False)
    sources = TokenSources.of(model.preprocessor, item, **how)
    pictures = [_opener(model.preprocessor, item, frame) for frame in sources.frames]
    parts = _pooled_parts(model, item, origins, embeddings.pooled[0], how)
    return Traced(embeddings, sources, item.texts, tuple(pictures), parts=parts)


def trace_page(model: TracingModel, page: PdfPage, *, instruction: str | None = None, dpi: float = 110) -> Traced:
    """Encodes the text of a PDF page, a document, so that evidence is drawn on the page.

    What a model's longest input has no room for is not encoded. An image of a page needs no more than `trace`.

    Args:
      model: that reads texts.
      page: of a document that `pypdfium2.PdfDocument` opened, and that stays open.
      instruction: of the document.
      dpi: pixels per inch of the picture, which is made when it is drawn.

    Raises:
      ValueError: the page has no text, or the model cannot read it.

    Example:
      >>> import pypdfium2, smart_jax
      >>> blank = pypdfium2.PdfDocument.new().new_page(200, 100)
      >>> trace_page(smart_jax.load("tiny"), blank)
      Traceback (most recent call last):
      ValueError: the page has no text: trace the image that page.render() makes of it
    """
    text = PageText.read(page)
    if not text.text.strip():
        raise ValueError("the page has no text: trace the image that page.render() makes of it")
    traced = trace(model, {"text": text.text}, instruction=instruction)
    return dataclasses.replace(
        traced, page=text, pictures=(lambda: page.render(scale=page_scale(page, dpi, "the page")).to_pil(),)
    )


def _opener(preprocessor: Preprocessor, item: ItemLike, frame: Any) -> Callable[[], Image.Image]:
    return lambda: preprocessor.frame_picture(item, frame)


def _pooled_parts(
    model: TracingModel, item: ItemLike, origins: Origins, pooled: Float[np.ndarray, " H"], how: dict[str, Any]
) -> Float[np.ndarray, "tokens H"] | None:
    """Returns what each kept token brings to a pooled vector that is a mean of states; None = it is one state."""
    tokens = origins.tokens
    means = getattr(model.preprocessor.config, "pooling", None) == "mean"
    pool = np.ones(len(tokens), bool) if tokens.pool is None and means else tokens.pool
    if pool is None or pool.sum() < 2:
        return None
    states = model.token_states(item, **how)[:, : len(pooled)] * pool[:, None]  # an adapter may cut the pooled vector
    states /= np.linalg.norm(states.sum(axis=0))
    if np.linalg.norm(states.sum(axis=0) - pooled) > PARTS_ERROR:
        return None
    kept: np.ndarray = states[tokens.keep]
    return kept
