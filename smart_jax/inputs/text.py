"""Texts to batches for encoders without a chat template or images: the folder layout of sentence-transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smart_jax.files import having, read_json
from smart_jax.inputs.collate import Row, bucket, buckets, check_collate, check_sizes, octaves, pad_text
from smart_jax.inputs.item import parse_item
from smart_jax.inputs.multimodal import Preprocessor
from smart_jax.inputs.prompt import TOKENIZER_FILES, added_ids, read_tokenizer
from smart_jax.inputs.settings import SETTINGS_FILE, check_positive, checked_sizes, read_settings, with_settings
from smart_jax.models import Batch, BertConfig, ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALLEST_LENGTH = 16
_CONFIGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers looks for, in its order


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Settings of a text encoder; a folder may carry them as `smart_jax.json`. None = as the folder's other files say.

    Attributes:
      max_length: tokens of a row, [CLS] and [SEP] included; what is longer is cut at the end of the text. None =
        max_seq_length of sentence_bert_config.json, or the positions that there are.
      default_instruction, query_instruction: put before a text (a query's) where nobody gives an instruction. None =
        the prompts of config_sentence_transformers.json, or nothing.
      length_buckets: padded sizes; None = two per octave.
      pooling: read with the config, see `models.bert_config.read_pooling`.
    """

    max_length: int | None = None
    default_instruction: str | None = None
    query_instruction: str | None = None
    length_buckets: tuple[int, ...] | None = None
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None:
            check_positive("max_length", self.max_length)
        object.__setattr__(self, "length_buckets", checked_sizes("length_buckets", self.length_buckets))
        for name in ("default_instruction", "query_instruction"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ValueError(f"{name} is {value!r}, expected a text or null")


class TextPreprocessor:
    """Turns texts into rows and rows into batches, with the contract of `Preprocessor`.

    Attributes:
      config, tokenizer, settings: of the checkpoint.
      lower_case: texts are lowered before the tokenizer sees them.
      length_buckets: the padded sizes that `collate` uses, ascending: one compilation each per batch size.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: BertConfig,
        settings: TextSettings,
        *,
        lower_case: bool = False,
    ):
        self.tokenizer, self.config, self.settings, self.lower_case = tokenizer, config, settings, lower_case
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
        cls, folder: str | Path, config: BertConfig, *, base: str | Path | None = None, **overrides: Any
    ) -> TextPreprocessor:
        """Reads the tokenizer and, where they exist, smart_jax.json and sentence-transformers' two config files.

        Args:
          folder: checkpoint in the layout of Hugging Face or sentence-transformers.
          config: of its backbone.
          base: has the files that the folder lacks, see `hub.resolve_base`.
          **overrides: fields of `TextSettings`.

        Raises:
          FileNotFoundError: the tokenizer is missing.
          ValueError: one of the files is corrupt, unknown settings, or they contradict the backbone's config.
        """
        where = having(folder, base, SETTINGS_FILE)
        settings: TextSettings = with_settings(TextSettings(), where, read_settings(where), overrides)
        transformer, prompts = (_read(having(folder, base, name) / name) for name in _CONFIGS)
        longest = transformer.get("max_seq_length") or config.max_position_embeddings
        query, document = _prompts(prompts)
        said: dict[str, Any] = {
            "max_length": min(longest, config.max_position_embeddings),
            "default_instruction": document,
            "query_instruction": query,
        }
        settings = dataclasses.replace(settings, **{k: v for k, v in said.items() if getattr(settings, k) is None})
        lower_case = bool(transformer.get("do_lower_case", False))
        return cls(read_tokenizer(having(folder, base, *TOKENIZER_FILES)), config, settings, lower_case=lower_case)

    def description(self) -> tuple[Any, ...]:
        """All that rows depend on beside the config; its `repr` is the same in every process."""
        return self.settings, self.lower_case, self.tokenizer.backend_tokenizer.to_str()

    def row(self, item: Any, *, instruction: str | None = None, query: bool = False, name: str = "item") -> Row:
        """Token ids and keep mask of one text: [CLS] instruction text [SEP], all but special tokens kept.

        A text without any other token keeps [CLS], whose state the model replaces with the pooled one.

        Args:
          item: as in `parse_item`, without images and videos; several texts are joined by spaces.
          instruction: prefix where the item carries none of its own, as it stands; None = the default instruction.
          query: whether it is a query, with a query's default instruction.
          name: of the item, for messages.

        Raises:
          TypeError, ValueError, FileNotFoundError: the item can not be used; the message says why and what to do.
        """
        parsed = parse_item(item, name=name)
        if parsed.images or parsed.videos:
            kind = "an image" if parsed.images else "a video"
            raise ValueError(
                f"{name} has {kind}, but this model ({self.config.model_type}) reads text only: pass its text, or "
                "load a multimodal model ({'text': ...} is never taken for the path of an image)"
            )
        if instruction is None:
            default = self.settings.query_instruction if query else self.settings.default_instruction
            instruction = default or ""
        text = (parsed.instruction or instruction) + " ".join(parsed.texts)
        words = self.tokenizer(text.lower() if self.lower_case else text, add_special_tokens=False, verbose=False)
        room = self._longest - len(self._prefix) - len(self._suffix)
        ids = np.concatenate([self._prefix, np.asarray(words["input_ids"][:room], np.int64), self._suffix])
        keep = ~np.isin(ids, self._special)
        keep[0] = not keep.any()
        return Row(input_ids=ids.astype(np.int32), keep=keep, grids=(), patches=np.zeros((0, 0), np.float32))

    def length_bucket(self, n: int) -> int:
        """Padded length of rows of at most n tokens."""
        return bucket(n, self.length_buckets, "tokens")

    def collate(
        self,
        rows: Sequence[Row],
        *,
        length: int | None = None,
        patches: int | None = None,
        batch_size: int | None = None,
        shards: int | None = None,
        padding_side: Literal["right", "left"] = "right",
    ) -> Batch:
        """A batch of static shape, without a vision part.

        Args:
          rows: at least one.
          length: padded length L; None = the bucket of the longest row.
          patches, shards: of images: None or 0, and without effect.
          batch_size: B; the batch is filled up with rows of one attended padding token and nothing kept.
          padding_side: side of the tokens that is padded.

        Returns:
          `Batch` of NumPy arrays; int32 and bool.

        Raises:
          ValueError: no rows, or a size that they do not fit.
        """
        check_collate(rows, padding_side)
        if patches:
            raise ValueError(f"patches is {patches}, but {self.config.model_type} reads no images: leave it out")
        longest = max(len(row.input_ids) for row in rows)
        B = len(rows) if batch_size is None else batch_size
        L = self.length_bucket(longest) if length is None else length
        check_sizes(batch_size=(B, len(rows)), length=(L, longest))
        return pad_text(rows, (B, L), _positions, pad_id=self._pad_id, left=padding_side == "left")


def _positions(row: Row) -> np.ndarray:
    return np.broadcast_to(np.arange(len(row.input_ids)), (3, len(row.input_ids)))


AnyPreprocessor = Preprocessor | TextPreprocessor


def open_preprocessor(
    folder: str | Path, config: ModelConfig, *, base: str | Path | None = None, **overrides: Any
) -> AnyPreprocessor:
    """The preprocessor of a checkpoint's architecture; arguments and errors as of its `from_pretrained`."""
    if isinstance(config, BertConfig):
        return TextPreprocessor.from_pretrained(folder, config, base=base, **overrides)
    return Preprocessor.from_pretrained(folder, config, base=base, **overrides)


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _prompts(found: dict[str, Any]) -> tuple[str, str]:
    """What sentence-transformers puts before a query and before a document."""
    prompts = found.get("prompts") or {}
    default = prompts.get(found.get("default_prompt_name")) or ""
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), default)
    return prompts.get("query", default) or "", document or ""
