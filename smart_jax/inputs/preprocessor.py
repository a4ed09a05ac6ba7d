"""The contract of preprocessing: items to tokenised items, and these to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from PIL import Image

from smart_jax.inputs.item import ItemLike
from smart_jax.inputs.origins import Frame, Origins
from smart_jax.inputs.settings import Settings, TextSettings
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import Batch, ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Literal["query", "document"]


@runtime_checkable
class Preprocessor(Protocol):
    """Turns items into tokenised items and these into batches; `open_preprocessor` reads a checkpoint's.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.inputs import open_preprocessor
      >>> from smart_jax.models import load_config
      >>> preprocessor: Preprocessor = open_preprocessor(resolve("tiny"), load_config(resolve("tiny")))
      >>> item = preprocessor.tokenize("revenue by region")
      >>> preprocessor.collate([item]).input_ids.shape
      (1, 20)
    """

    @property
    def config(self) -> ModelConfig:
        """Config of the backbone that the batches are for: the checkpoint's, as the settings ask for it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the checkpoint."""

    @property
    def settings(self) -> Settings | TextSettings:
        """Prompt, pooling and sizes."""

    @property
    def preset(self) -> str | None:
        """Name of the preset that the settings come from; None = they come from the checkpoint's files alone."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of content that an item may hold: "text", "image", "video", "audio"."""

    @property
    def prompted(self) -> tuple[Side, ...]:
        """Sides whose prompt has a place for an instruction."""

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Token ids that stand for parts of images and videos."""

    @property
    def audio_ids(self) -> tuple[int, ...]:
        """Token ids that stand for parts of audio."""

    @property
    def merge_size(self) -> int:
        """Number of patches on a side of a visual token."""

    @property
    def length_buckets(self) -> tuple[int, ...]:
        """Padded lengths that `collate` uses, ascending; the last is the largest number of tokens of an item."""

    def description(self) -> tuple[object, ...]:
        """Returns all that tokenised items depend on beside the config; its `repr` is the same in every process."""

    def tokenize(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> TokenizedItem:
        """Returns token ids, kept tokens and patches of one item.

        Args:
          item: what `parse_item` takes, or its result.
          instruction: used where the item carries none of its own; None = the checkpoint's default.
          query: whether it is a query.
          name: what messages call the item.

        Raises:
          TypeError, ValueError, OSError: the item cannot be used; the message says why and what to do.
        """

    def outline(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> TokenizedItem:
        """Returns what `tokenize` gives, but without a patch: pixels are not decoded."""

    def measure(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> tuple[int, int]:
        """Returns the numbers of tokens and of patches that `tokenize` gives, without decoding pixels."""

    def picture(self, item: ItemLike) -> Image.Image | None:
        """Returns the first image, the middle frame of the first video, or the first clip drawn; None of a text."""

    def origins(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> Origins:
        """Returns what each token that `tokenize` gives stands for, without decoding pixels."""

    def frame_picture(self, item: ItemLike, frame: Frame) -> Image.Image:
        """Returns the image that a frame of `origins` is of, in its full size."""

    def length_bucket(self, n: int) -> int:
        """Returns the padded length of items of at most n tokens."""

    def padded_sizes(self, tokens: int, patches: int) -> tuple[int, int]:
        """Returns the padded length and patches that `collate` gives items of at most so many tokens and patches."""

    def collate(
        self,
        items: Sequence[TokenizedItem],
        *,
        length: int | None = None,
        patches: int | None = None,
        batch_size: int | None = None,
        shards: int | None = None,
        padding_side: Literal["right", "left"] = "right",
        videos: bool | None = None,
    ) -> Batch:
        """Returns a padded batch of static shape, of NumPy arrays."""
