"""Prompts letter by letter, and every file of a checkpoint's processor: read, missing, corrupt, contradicting."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest

from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.presets import open_settings
from smart_jax.inputs.prompt import Prompt
from smart_jax.inputs.settings import QWEN3_TURNS
from smart_jax.inputs.tokenizer import without_advice
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.backbone import small_config
from tests.checkpoints import noise_page, write_processor

CONFIG = QwenVLConfig.from_hf(small_config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def preprocessor(folder):
    return MultimodalPreprocessor.from_pretrained(folder, CONFIG)


def rendered(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


# ---- prompt


@pytest.mark.parametrize(
    ("instruction", "system"),
    [
        (None, "Represent the user's input."),
        ("", "Represent the user's input."),
        ("  \n", "Represent the user's input."),
        ("Find a page", "Find a page."),
        ("  Find a page.  ", "Find a page."),
        ("Which page?", "Which page?"),
        ("找到页面。", "找到页面。"),  # category Po
        ("in (brackets)", "in (brackets)"),  # Pe
        ("costs 5 $", "costs 5 $."),  # Sc is no punctuation
        ("a + b =", "a + b =."),
    ],
)
def test_instruction(preprocessor, instruction, system):
    assert preprocessor.prompt(["x"], 0, instruction=instruction) == rendered(system, "x")


def test_images_come_before_texts_and_nothing_is_null(preprocessor):
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert preprocessor.prompt(["x", "y"], 2) == rendered("Represent the user's input.", picture * 2 + "xy")
    assert preprocessor.prompt([], 1) == rendered("Represent the user's input.", picture)
    assert preprocessor.prompt([], 0) == rendered("Represent the user's input.", "NULL")


def test_turns_are_the_field_s_messages(preprocessor):
    prompt = Prompt(QWEN3_TURNS, preprocessor.tokenizer, CONFIG, "{{ messages | tojson }}")
    system, user = json.loads(prompt(["x"], images=1, videos=1, instruction="Go"))
    assert system == {"role": "system", "content": [{"type": "text", "text": "Go."}]}
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "x"}]
    assert user == {"role": "user", "content": content}


def test_the_item_s_instruction_comes_first(preprocessor):
    own = preprocessor.tokenize({"text": "x", "instruction": "Own"}, instruction="Other").input_ids
    assert own.tolist() == preprocessor.tokenize("x", instruction="Own.").input_ids.tolist()
    assert own.tolist() != preprocessor.tokenize("x", instruction="Other").input_ids.tolist()


# ---- settings and files


def test_smart_jax_json_and_overrides(folder, tmp_path):
    write_processor(tmp_path)
    settings_file = {
        "max_pixels": 8192,
        "max_length": 256,
        "default_instruction": "Read.",
        "query_instruction": "Ask",
        "length_buckets": [64, 128],
    }
    (tmp_path / "smart_jax.json").write_text(json.dumps(settings_file))
    preprocessor = MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG)
    assert preprocessor.length_buckets == (64, 128, 256)
    assert preprocessor.prompt(["x"]) == rendered("Read.", "x")
    assert preprocessor.prompt(["x"], query=True) == rendered("Ask.", "x")
    asked, read = preprocessor.tokenize("x", query=True), preprocessor.tokenize("x")
    assert asked.input_ids.tolist() == preprocessor.tokenize("x", instruction="Ask").input_ids.tolist()
    assert asked.input_ids.tolist() != read.input_ids.tolist()
    assert preprocessor.tokenize(noise_page(640, 640)).grids == (
        (1, 4, 4),
    )  # 64 x 64: the next size up is over 8,192 pixels
    assert MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG, max_length=99).length_buckets == (64, 99)
    default = MultimodalPreprocessor.from_pretrained(folder, CONFIG)
    assert default.prompt(["x"], query=True) == default.prompt(["x"])
    assert default.tokenize(noise_page(640, 640)).grids == (
        (1, 40, 40),
    )  # the file's shortest_edge, longest_edge are not used
    assert default.tokenize(noise_page(20, 20)).grids == ((1, 4, 4),)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"max_pixel": 1}, r"smart_jax.json: unknown settings max_pixel; known are head, prompt, .*max_pixels"),
        ({"max_length": 0}, r"smart_jax.json: max_length is 0, expected a positive integer"),
        ({"max_length": "8"}, r"max_length is '8', expected a positive integer"),
        ({"length_buckets": 8}, r"length_buckets is 8, expected a list"),
        ({"resize": "quick"}, r"resize is 'quick', expected 'exact' or 'fast'"),
        ({"patch_buckets": [4, -4]}, r"patch_buckets is -4, expected a positive integer"),
        ({"default_instruction": ""}, r"default_instruction is '', expected a text or null"),
        ({"query_instruction": 3}, r"query_instruction is 3, expected a text or null"),
        ([1], r"smart_jax.json holds a JSON list, expected an object"),
    ],
)
def test_bad_settings(found, message, tmp_path):
    (tmp_path / "smart_jax.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message):
        open_settings(tmp_path, "qwen3_vl")


def test_bad_overrides_and_broken_settings_file(folder, tmp_path):
    with pytest.raises(ValueError, match="Preprocessor: unknown settings max_pixel"):
        MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_pixel=3)
    with pytest.raises(ValueError, match="min_pixels is 9000 and max_pixels 8000"):
        MultimodalPreprocessor.from_pretrained(folder, CONFIG, min_pixels=9000, max_pixels=8000)
    (tmp_path / "smart_jax.json").write_text("{")
    with pytest.raises(ValueError, match="smart_jax.json is not valid JSON"):
        open_settings(tmp_path, "qwen3_vl")


MISSING = {
    "tokenizer.json": "lacks tokenizer.json: copy it from the original checkpoint",
    "preprocessor_config.json": r"lacks preprocessor_config.json .*: copy it",
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_files(name, tmp_path):
    (write_processor(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=MISSING[name]):
        MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]"])
def test_corrupt_files(name, damage, tmp_path):
    path = write_processor(tmp_path) / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"{name}.*(fetch|write the file|expected an object)"):
        MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG)


@pytest.mark.parametrize("template", [None, "{% for %}", "{{ messages[0].content }}", "{{ raise_exception('no') }}"])
def test_unusable_chat_template(template, tmp_path):
    path = write_processor(tmp_path) / "chat_template.jinja"
    path.unlink() if template is None else path.write_text(template)
    with pytest.raises(ValueError, match="chat template.*(copy one|fetch the checkpoint|do not match)"):
        MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG)


def test_other_places_of_template_and_image_settings(folder, tmp_path, preprocessor):
    write_processor(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    image_processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": image_processor}))
    expected = preprocessor.tokenize({"text": "x", "image": noise_page(70, 80)})
    for file, found in (("chat_template.json", {}), ("tokenizer_config.json", None)):
        path = tmp_path / file
        found = json.loads(path.read_text()) if found is None else found
        path.write_text(json.dumps(found | {"chat_template": template}))
        row = MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG).tokenize(
            {"text": "x", "image": noise_page(70, 80)}
        )
        assert row.input_ids.tolist() == expected.input_ids.tolist() and np.array_equal(row.patches, expected.patches)
        if file == "chat_template.json":
            path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 14}, "patch_size is 14, but config.json has patch_size 16"),
        ({"merge_size": 1}, "merge_size is 1, but config.json has spatial_merge_size 2"),
        ({"do_normalize": False}, "do_normalize = false is not supported"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is .*expected three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is 0.0, expected a positive number"),
    ],
)
def test_image_settings_that_contradict(change, message, tmp_path):
    path = write_processor(tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        MultimodalPreprocessor.from_pretrained(tmp_path, CONFIG)


def test_tokenizer_of_another_backbone(folder):
    with pytest.raises(ValueError, match=r"token ids up to \d+, the backbone's vocabulary ends before 100"):
        text = dataclasses.replace(CONFIG.text, vocab_size=100)
        MultimodalPreprocessor.from_pretrained(folder, dataclasses.replace(CONFIG, text=text))
    with pytest.raises(ValueError, match="does not write the backbone's image token"):
        MultimodalPreprocessor.from_pretrained(folder, dataclasses.replace(CONFIG, image_token_id=9))


def test_transformers_does_not_ask_for_pytorch():
    logger, handler, said = logging.getLogger("transformers"), logging.Handler(), []
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with without_advice():
            logger.warning("PyTorch was not found. Models won't be available")
            logger.warning("something else")
        logger.warning("PyTorch was not found, says another")
    finally:
        logger.removeHandler(handler)
    assert said == ["something else", "PyTorch was not found, says another"]
