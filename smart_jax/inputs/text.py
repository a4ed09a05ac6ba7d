"""Texts to batches, for encoders that read nothing else: the folder layout of sentence-transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from PIL import Image

from smart_jax.files import Checkpoint, checked_int, read_json, shown
from smart_jax.inputs.audio import refuse_audio
from smart_jax.inputs.collate import check_collate, pad_text
from smart_jax.inputs.item import Item, ItemLike, parse_item
from smart_jax.inputs.origins import Frame, Origins, in_parts, text_spans
from smart_jax.inputs.padded_sizes import bucket, buckets, check_sizes, octaves
from smart_jax.inputs.preprocessor import Side
from smart_jax.inputs.settings import SETTINGS_FILE, TextSettings, is_text, read_settings, with_settings
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.inputs.tokenizer import TOKENIZER_FILES, added_ids, panics_as_errors, read_tokenizer
from smart_jax.models import Batch, BertConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALLEST_LENGTH = 16
_CONFIGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers looks for, in its order


class TextPreprocessor:
    """The `Preprocessor` of encoders that read texts only.

    Attributes:
      config: the backbone's config, as the settings ask for it.
      tokenizer, settings: of the checkpoint.
      lower_case: whether texts are lowered before the tokenizer sees them.
      length_buckets: padded lengths that `collate` uses, ascending: one compilation each per batch size.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "vocab.txt").write_text("[PAD] [UNK] [CLS] [SEP] [MASK] oil price".replace(" ", chr(10)))
      >>> _ = (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
      >>> config = BertConfig("bert", vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8, max_position_embeddings=16)
      >>> TextPreprocessor.from_pretrained(folder, config).tokenize("oil price").input_ids.tolist()
      [2, 5, 6, 3]
    """

    modalities: tuple[str, ...] = ("text",)
    preset: str | None = None
    prompted: tuple[Side, ...] = ()  # an instruction would be a prefix of the text
    visual_ids: tuple[int, ...] = ()
    audio_ids: tuple[int, ...] = ()
    merge_size = 1

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: BertConfig,
        settings: TextSettings,
        *,
        lower_case: bool = False,
    ):
        self.tokenizer, self.config = tokenizer, settings.configured(config)
        self.settings, self.lower_case = settings, lower_case
        longest = config.max_position_embeddings if settings.max_length is None else settings.max_length
        self._longest = longest
        self.length_buckets = buckets(settings.length_buckets or octaves(SMALLEST_LENGTH, longest), longest, 1)
        self._prefix, self._suffix = added_ids(tokenizer)
        self._special = np.array(sorted(tokenizer.all_special_ids), np.int64)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"max_length is {longest}, but the model has {config.max_position_embeddings} positions: lower it"
            )
        if longest <= len(self._prefix) + len(self._suffix):
            raise ValueError(f"max_length is {longest}, which [CLS] and [SEP] fill: raise it")
        if not len(self._prefix) or not np.isin(self._prefix, self._special).all():
            raise ValueError("the tokenizer puts no [CLS] before a text: tokenizer and config.json do not match")
        if (largest := max(tokenizer.get_vocab().values())) >= config.vocab_size:
            raise ValueError(
                f"the tokenizer has token ids up to {largest}, the backbone's vocabulary ends before "
                f"{config.vocab_size}: tokenizer and config.json belong to different checkpoints"
            )

    @classmethod
    def from_pretrained(
        cls, checkpoint: Checkpoint | str | Path, config: BertConfig, **overrides: Any
    ) -> TextPreprocessor:
        """Reads the tokenizer and, where they exist, smart_jax.json and sentence-transformers' two config files.

        Args:
          checkpoint: from `smart_jax.files.open_checkpoint`, or a folder.
          config: of its backbone.
          **overrides: fields of `TextSettings`.

        Raises:
          FileNotFoundError: the tokenizer is missing.
          ValueError: one of the files is corrupt, unknown settings, or they contradict the backbone's config.
        """
        checkpoint = Checkpoint.of(checkpoint)
        where = checkpoint.having(SETTINGS_FILE)
        settings: TextSettings = with_settings(TextSettings(), where, read_settings(where), overrides)
        paths = [checkpoint.path(name) for name in _CONFIGS]
        transformer, prompts = map(_read, paths)
        longest = transformer.get("max_seq_length") or config.max_position_embeddings
        checked_int(longest, f"{paths[0]}: max_seq_length")
        query, document = _prompts(prompts, str(paths[1]))
        said: dict[str, Any] = {
            "max_length": min(longest, config.max_position_embeddings),
            "default_instruction": document,
            "query_instruction": query,
        }
        settings = dataclasses.replace(settings, **{k: v for k, v in said.items() if getattr(settings, k) is None})
        lower_case = bool(transformer.get("do_lower_case", False))
        return cls(read_tokenizer(checkpoint.having(*TOKENIZER_FILES)), config, settings, lower_case=lower_case)

    def description(self) -> tuple[object, ...]:
        """Returns all that tokenised items depend on beside the config; its `repr` is the same in every process."""
        return self.settings, self.lower_case, self.tokenizer.backend_tokenizer.to_str()

    def tokenize(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> TokenizedItem:
        """Returns token ids and keep mask of one text: [CLS] instruction text [SEP], all except special tokens kept.

        A text without any other token keeps [CLS], whose state the model replaces by the pooled one.

        Args:
          item: what `parse_item` takes, without images and videos; several texts are joined by spaces.
          instruction: prefix where the item carries none of its own, as it stands; None = the default instruction.
          query: whether it is a query, with a query's default instruction.
          name: what messages call the item.

        Raises:
          TypeError, ValueError, FileNotFoundError: the item cannot be used; the message says why and what to do.
        """
        _, text = self._text(item, instruction, query, name)
        with panics_as_errors():
            words = self.tokenizer(text.lower() if self.lower_case else text, add_special_tokens=False, verbose=False)
        return self._tokenized(np.asarray(words["input_ids"], np.int64))

    def _text(self, item: ItemLike, instruction: str | None, query: bool, name: str) -> tuple[Item, str]:
        """Returns the item, and what is tokenised of it: the instruction and its texts."""
        parsed = parse_item(item, name=name)
        if parsed.audios:
            raise refuse_audio(name, self.config.model_type)
        if parsed.images or parsed.videos:
            kind = "an image" if parsed.images else "a video"
            raise ValueError(
                f"{name} has {kind}, but this model ({self.config.model_type}) reads text only: pass its text, or "
                "load a multimodal model ({'text': ...} is never taken for the path of an image)"
            )
        if instruction is None:
            default = self.settings.query_instruction if query else self.settings.default_instruction
            instruction = default or ""
        return parsed, (parsed.instruction or instruction) + " ".join(parsed.texts)

    def _tokenized(self, words: Int[np.ndarray, " words"], *, whole: bool = False) -> TokenizedItem:
        room = len(words) if whole else self._longest - len(self._prefix) - len(self._suffix)
        ids = np.concatenate([self._prefix, words[:room], self._suffix])
        keep = ~np.isin(ids, self._special)
        keep[0] = not keep.any()
        no_patches, cut = np.zeros((0, 0), np.uint8), max(0, len(words) - room)
        return TokenizedItem(input_ids=ids.astype(np.int32), keep=keep, grids=(), patches=no_patches, cut=cut)

    def origins(
        self,
        item: ItemLike,
        *,
        instruction: str | None = None,
        query: bool = False,
        name: str = "item",
        whole: bool = False,
    ) -> Origins:
        """Returns what each token of a text stands for.

        Args:
          item, instruction, query, name: as in `tokenize`.
          whole: whether tokens are told that `tokenize` cuts, too: of a text that is read in several windows.

        Raises:
          TypeError, ValueError, FileNotFoundError: as `tokenize`.
        """
        parsed, text = self._text(item, instruction, query, name)
        read = text.lower() if self.lower_case else text
        with panics_as_errors():
            words = self.tokenizer(read, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = self._tokenized(np.asarray(words["input_ids"], np.int64), whole=whole)
        offsets = np.asarray(words["offset_mapping"], np.int64).reshape(-1, 2)
        if len(read) != len(text):  # a few letters are two characters in lower case
            origin = np.repeat(np.arange(len(text)), [len(character.lower()) for character in text])
            offsets = np.stack([origin[offsets[:, 0]], origin[offsets[:, 1] - 1] + 1], axis=1)
        room = len(tokens) - len(self._prefix) - len(self._suffix)
        offsets = np.pad(offsets[:room], ((len(self._prefix), len(self._suffix)), (0, 0)))
        joined = " ".join(parsed.texts)
        spans = text_spans(offsets, text, [(0, len(text) - len(joined), len(text))], [joined])
        added = self.tokenizer.convert_ids_to_tokens(tokens.input_ids.tolist())
        pieces = [text[first:last] or str(word) for (first, last), word in zip(offsets.tolist(), added, strict=True)]
        return Origins(tokens, tuple(pieces), in_parts(spans, parsed.texts), frames=())

    def outline(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> TokenizedItem:
        """Returns what `tokenize` gives: a text has no pixels to leave out."""
        return self.tokenize(item, instruction=instruction, query=query, name=name)

    def measure(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> tuple[int, int]:
        """Returns the number of tokens that `tokenize` gives, and 0 patches."""
        return len(self.tokenize(item, instruction=instruction, query=query, name=name)), 0

    def picture(self, item: ItemLike) -> None:
        """Returns None: a text shows nothing."""

    def frame_picture(self, item: ItemLike, frame: Frame) -> Image.Image:
        """Raises ValueError: a text has no frames."""
        raise ValueError(f"{self.config.model_type} reads text only: there is no {frame.medium} to show")

    def length_bucket(self, n: int) -> int:
        """Returns the padded length of items of at most n tokens."""
        return bucket(n, self.length_buckets, "tokens")

    def padded_sizes(self, tokens: int, patches: int) -> tuple[int, int]:
        """Returns the padded length of items of at most so many tokens, and no patches."""
        return self.length_bucket(tokens), 0

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
        """Returns a batch of static shape, without a vision part.

        Args:
          items: at least one.
          length: padded length L; None = the bucket of the longest item.
          patches, shards, videos: of images; None or 0, and without effect.
          batch_size: B; the batch is filled up with rows of one attended padding token and no kept one.
          padding_side: side of the tokens that is padded.

        Returns:
          `Batch` of NumPy arrays; int32 and bool.

        Raises:
          ValueError: there are no items, or they do not fit a size.
        """
        check_collate(items, padding_side)
        if patches:
            raise ValueError(f"patches is {patches}, but {self.config.model_type} reads no images: leave it out")
        longest = max(map(len, items))
        B = len(items) if batch_size is None else batch_size
        L = self.length_bucket(longest) if length is None else length
        check_sizes(batch_size=(B, len(items)), length=(L, longest))
        return pad_text(items, (B, L), _positions, pad_id=self._pad_id, left=padding_side == "left")


def _positions(item: TokenizedItem) -> Int[np.ndarray, "3 L"]:
    return np.broadcast_to(np.arange(len(item)), (3, len(item)))


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _prompts(config: dict[str, Any], name: str) -> tuple[str, str]:
    """Returns what sentence-transformers puts before a query and before a document; `name` is of the file."""
    prompts, usual = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(map(is_text, prompts.values())):
        raise ValueError(f"{name}: prompts are {shown(prompts)}, expected an object of texts")
    if not isinstance(usual, str | None):
        raise ValueError(f"{name}: default_prompt_name is {shown(usual)}, expected a text or null")
    default = prompts.get(usual) or ""
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), default)
    return prompts.get("query", default) or "", document or ""
