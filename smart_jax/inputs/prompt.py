"""The prompt of a checkpoint: its text, its tokenizer and chat template, and which tokens are kept."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smart_jax.files import read_json, shown
from smart_jax.inputs.settings import VISUAL, MultimodalConfig, Turns

if TYPE_CHECKING:  # transformers takes a second to import: only where a tokenizer is read
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

_MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


class _Part(NamedTuple):
    """A part of a turn's content."""

    source: str
    template: Template

    def content(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        """Returns it as chat templates read it."""
        if self.source == VISUAL:
            return [{"type": "video"}] * values["videos"] + [{"type": "image"}] * values["images"]
        text = self.template.render(values)
        return [{"type": "text", "text": text}] if text else []


class Prompt:
    """Writes the prompt of a checkpoint.

    A template (Jinja, sandboxed; an item's texts are values and never read as templates) has these variables:
      texts: list of the item's texts; images, videos: numbers of these; query: whether it is a query;
      instruction: as given, or the default, or "" (the filter `sentence` strips it and ends it in a period unless its
        last character is punctuation, Unicode P*);
      audios: number of clips; visual: placeholders, between their marks, of all videos, then images, then clips; image,
      video, audio: placeholder of one; image_token, video_token, audio_token: the bare placeholders, "" of a model that
      does not hear.
    """

    def __init__(
        self,
        prompt: str | Turns,
        tokenizer: PreTrainedTokenizerBase,
        config: MultimodalConfig,
        chat_template: str | None = None,
    ):
        """Raises ValueError: a template has a syntax error.

        Args:
          prompt: a template, or turns (each its role and the templates of its parts) for the chat template.
          tokenizer, config: of the checkpoint.
          chat_template: of the checkpoint; needed for turns.
        """
        from jinja2 import StrictUndefined, TemplateError

        from smart_jax.inputs.bounded_jinja import BoundedEnvironment, bounded, chat_environment

        jinja = BoundedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
        jinja.filters["sentence"] = sentence
        self._literal = isinstance(prompt, str)
        turns: Turns = (("", prompt),) if isinstance(prompt, str) else prompt
        try:
            with bounded(texts=0):  # what is constant in a template is computed as it is compiled
                self._turns = [
                    (role, [_Part(part, jinja.from_string(part)) for part in parts]) for role, *parts in turns
                ]
        except (TemplateError, SyntaxError) as error:
            raise ValueError(f"the prompt is not a Jinja template ({error}): {shown(prompt)}") from error
        try:
            with bounded(texts=0):
                self._chat = None if chat_template is None else chat_environment().from_string(chat_template)
        except (TemplateError, SyntaxError) as error:
            raise ValueError(f"the chat template cannot be rendered ({error}): fetch the checkpoint again") from error
        self._special = dict(tokenizer.special_tokens_map)
        ids = (config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)
        image, video, start, end = (str(tokenizer.convert_ids_to_tokens(i)) for i in ids)
        self._tokens = {"image_token": image, "video_token": video}
        self._tokens |= {"image": f"{start}{image}{end}", "video": f"{start}{video}{end}"}
        heard = config.audio_ids
        before, audio, after = map(str, tokenizer.convert_ids_to_tokens(list(heard))) if heard else ("", "", "")
        self._tokens |= {"audio_token": audio, "audio": f"{before}{audio}{after}"}

    def __call__(
        self,
        texts: Sequence[str],
        *,
        images: int = 0,
        videos: int = 0,
        audios: int = 0,
        instruction: str = "",
        query: bool = False,
    ) -> str:
        """Returns the prompt of one item, with one placeholder per video, image and clip.

        Raises:
          ValueError: a template cannot be rendered.
        """
        from jinja2 import TemplateError

        from smart_jax.inputs.bounded_jinja import bounded

        counts = {"video": videos, "image": images, "audio": audios}
        visual = "".join(self._tokens[medium] * count for medium, count in counts.items())
        values: dict[str, Any] = {f"{medium}s": count for medium, count in counts.items()}
        values |= {"texts": list(texts), "query": query, "visual": visual}
        values |= {"instruction": instruction, **self._tokens}
        try:
            with bounded(texts=len(instruction) + sum(map(len, texts))):
                return self._rendered(values)
        except (TemplateError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"the prompt or chat template cannot be rendered: {error}") from error

    def _rendered(self, values: Mapping[str, Any]) -> str:
        if self._literal:
            return self._turns[0][1][0].template.render(values)
        turns = [
            {"role": role, "content": [piece for part in parts for piece in part.content(values)]}
            for role, parts in self._turns
        ]
        if self._chat is None:
            raise ValueError("turns need the chat template of the checkpoint, which has none")
        given = {**self._special, "messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        return self._chat.render(given)


def sentence(instruction: str) -> str:
    """Returns the instruction, stripped, with a final period unless its last character is punctuation (Unicode P*)."""
    instruction = instruction.strip()
    return instruction + "." * (bool(instruction) and not unicodedata.category(instruction[-1]).startswith("P"))


def dropped_token_ids(tokenizer: PreTrainedTokenizerBase, config: MultimodalConfig) -> set[int]:
    """Returns the token ids that take no part in late interaction (SMART, arXiv:2605.24938).

    These are the tokenizer's special tokens and the markers of turns and images; visual placeholders are kept, and so
    are the words of the template and of the instruction.
    """
    dropped = set(tokenizer.all_special_ids)
    dropped |= token_ids(tokenizer, _MARKERS)
    return (dropped | set(config.mark_ids)) - set(config.placeholder_ids)


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> set[int]:
    """Returns the ids of those of the tokens that the tokenizer has."""
    return {i for token in tokens if (i := _token_id(tokenizer, token)) is not None}


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    token_id = tokenizer.convert_tokens_to_ids(token)
    return token_id if isinstance(token_id, int) and tokenizer.convert_ids_to_tokens(token_id) == token else None


def read_chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Reads the checkpoint's Jinja template of turns; raises ValueError where there is none."""
    # The processor's own file comes first, as in transformers; then chat_template.jinja and tokenizer_config.json.
    template = tokenizer.chat_template
    if (path := folder / "chat_template.json").is_file():
        template = read_json(path).get("chat_template", template)
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise ValueError(
            f"{folder} has no chat template (chat_template.jinja, chat_template.json or tokenizer_config.json): copy "
            "one from the original checkpoint"
        )
    return template
