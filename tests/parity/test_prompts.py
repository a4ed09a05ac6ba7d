"""Prompts of published models, letter by letter, against what mteb's wrappers of these models give to the processor."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from mteb.types import PromptType
from PIL import Image

from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.presets import PRESETS
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.backbone import small_config
from tests.checkpoints import CHAT_TEMPLATE, noise_page, write_processor

# The chat templates of Qwen2-VL and Qwen2.5-VL put this turn before a conversation that has no system turn of its own.
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
TASK = "Find a page that answers the question."
WRAPPERS = {  # head: (module of mteb, its class, whether the task's instruction reaches documents)
    "ops_mm_embedding": ("ops_mm_models", "OpsMMEmbeddingWrapper", True),
    "rzen_embed": ("rzen_embed_model", "RzenEmbedWrapper", True),
    "unite": ("unite_models", "UniteWrapper", False),
    "gve": ("gve_models", "GVEWrapper", False),
    "moca": ("moca_models", "MoCaWrapper", False),
    "eager_embed": ("eagerworks_models", "EagerEmbedV1Wrapper", False),
}


class AskedError(Exception):
    """The texts that a processor is called with, which end the wrapper's work."""


class Processor:
    """A processor that has a chat template and says what it is given."""

    def __init__(self, tokenizer: Any, template: str):
        self.tokenizer, self._template = tokenizer, template

    def __call__(self, *, text: list[str], **_: Any) -> None:
        raise AskedError(*text)

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, chat_template=self._template, **options)


class Loader(list):
    """The part of a DataLoader that the wrappers read: batches, and the names of the columns."""

    @property
    def dataset(self) -> SimpleNamespace:
        return SimpleNamespace(features=self[0].keys())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("processor"))


@pytest.mark.parametrize("head", WRAPPERS)
def test_prompt_of_mteb(folder, head, monkeypatch):
    module, name, on_documents = WRAPPERS[head]
    config = dataclasses.replace(QwenVLConfig.from_hf(small_config()), model_type=PRESETS[head].model_types[0])
    ours = MultimodalPreprocessor.from_pretrained(folder, config, head=head)
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", SimpleNamespace(process_vision_info=lambda _: (None, None)))
    wrapper = object.__new__(getattr(importlib.import_module(f"mteb.models.model_implementations.{module}"), name))
    for attribute, value in {
        "processor": Processor(ours.tokenizer, CHAT_TEMPLATE if head == "eager_embed" else SYSTEM + CHAT_TEMPLATE),
        "device": "cpu",
        "default_instruction": "You are a helpful assistant.",
        "max_length": 2000,
        "videos_kwargs": {},
        "image_size": 784,
        "image_prompt": "Represent the given document image.",
        "get_task_instruction": lambda *_: TASK,
        "get_instruction": lambda *_: TASK,
    }.items():
        setattr(wrapper, attribute, value)

    def asked(kind: PromptType, **columns: list[str | Image.Image]) -> tuple[str, ...]:
        with pytest.raises(AskedError) as texts:
            wrapper.encode(
                Loader([columns]), task_metadata=None, hf_split="test", hf_subset="default", prompt_type=kind
            )
        return texts.value.args

    page, words = noise_page(64, 64), ["which year?", "Is it {{ visual }}?"]
    instructed = PRESETS[head].settings.instructions != "none"
    for kind in (PromptType.query, PromptType.document):
        query = kind == PromptType.query
        how = {"query": query, "instruction": TASK if instructed and (query or on_documents) else None}
        assert asked(kind, text=words) == tuple(ours.prompt([text], **how) for text in words)
        assert asked(kind, image=[page]) == (ours.prompt([], 1, **how),)
        assert asked(kind, text=words, image=[page, page]) == tuple(ours.prompt([text], 1, **how) for text in words)
