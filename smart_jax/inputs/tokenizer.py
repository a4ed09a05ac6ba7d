"""The tokenizer of a checkpoint, read by transformers without more of that library than it takes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from smart_jax.files import check_pattern, read_json

if TYPE_CHECKING:  # transformers takes a second to import: only where a tokenizer is read
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # one of them is there
MOST_PARTS = 200  # of a normalizer, a pre_tokenizer and others, together
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that take tokenizer.json as it is


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Returns the token ids that the tokenizer puts before and after every text; most put nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return np.array(full[:start], np.int64), np.array(full[start + len(bare) :], np.int64)


def read_tokenizer(folder: Path, *, added: str | None = None) -> PreTrainedTokenizerBase:
    """Reads the checkpoint's tokenizer, and gives it the token `added` if it lacks it.

    Raises:
      FileNotFoundError: the folder has no tokenizer.
      ValueError: its files are corrupt.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(f"{folder} lacks tokenizer.json: copy it from the original checkpoint")
    check_tokenizer(folder)
    try:
        with panics_as_errors():
            tokenizer: PreTrainedTokenizerBase = _tokenizer_class(folder).from_pretrained(str(folder))
            tokenizer("a")
    except Exception as error:  # the Rust tokenizers raise a bare Exception
        raise ValueError(
            f"the tokenizer in {folder} (tokenizer.json, tokenizer_config.json) cannot be read ({error!s:.2000}): "
            "fetch the checkpoint again"
        ) from error
    if added is not None:
        tokenizer.add_tokens([added])
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """Returns the class that reads a folder's tokenizer: the one that is nothing but tokenizer.json, if it names that.

    Others are found by `AutoTokenizer`, which imports torch where that is installed, 1.5 s of CPU time.
    """
    with without_advice():
        import transformers
    path = folder / "tokenizer_config.json"
    # transformers writes 10**30 where it knows no longest text.
    plain = path.is_file() and read_json(path, bits=128).get("tokenizer_class") in _PLAIN
    return transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer


def check_tokenizer(folder: Path) -> None:
    """Looks through tokenizer.json for what could take the time or the memory of a machine.

    Raises:
      ValueError: a regular expression may take too long, or texts are to be replaced by much longer ones.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content, count = read_json(path, remedy="fetch the checkpoint again"), 0
    stack = [content.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            count += 1
            if "Regex" in part:
                check_pattern(part["Regex"], str(path))
            if part.get("type") in ("Replace", "Prepend") and len(str(part.get("content", part.get("prepend")))) > 16:
                raise ValueError(f"{path}: a {part['type']} has a content of more than 16 characters")
        if count > MOST_PARTS:
            raise ValueError(f"{path}: its normalizer, pre_tokenizer and others have more than {MOST_PARTS} parts")
        stack += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turns what Rust raises where it gives up, a panic or a bare `Exception`, into a ValueError.

    And the TypeError of a text that is not Unicode: items' texts are looked at before, instructions and templates here.
    """
    try:
        yield
    except TypeError as error:
        raise ValueError(f"an instruction or a template has a lone surrogate, no character ({error!s:.200})") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException" and type(error) is not Exception:  # that of a missing [UNK]
            raise
        raise ValueError(f"the tokenizer gave up ({error!s:.500}): fetch the checkpoint again") from error


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Keeps transformers from saying, as it is imported, that there is no PyTorch: nothing here needs it."""
    logger = logging.getLogger("transformers")

    def needed(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger.addFilter(needed)
    try:
        yield
    finally:
        logger.removeFilter(needed)
