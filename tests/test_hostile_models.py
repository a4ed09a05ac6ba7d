"""Folders of models made to do harm: layers without number, endless templates, regular expressions that never end."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from smart_jax.files import check_pattern, resolve
from smart_jax.inputs import open_preprocessor
from smart_jax.inputs.bounded_jinja import BoundedEnvironment, TemplateTooLargeError, bounded, chat_environment
from smart_jax.inputs.tokenizer import panics_as_errors, read_tokenizer
from smart_jax.models import load_config, load_weights
from smart_jax.models.config_values import MOST, MOST_LAYERS
from tests.lora import write_lora
from tests.small_bert import CONFIG, write_json, write_sentence_transformer


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A whole model; tests write to copies of its small files."""
    return write_sentence_transformer(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def folder(bert, tmp_path):
    for path in bert.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(bert)).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / path.relative_to(bert)).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("value", [20_000, 10**9, 2**63, 0, -1, 1.5, "2", None, [2], True, float("inf")])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
def test_sizes_that_no_model_has(folder, key, value):
    if isinstance(value, int) and 0 < value <= MOST[key]:
        return  # checked against the weights, below
    write_json(folder / "config.json", CONFIG | {key: value})
    with pytest.raises(ValueError, match=r"config\.json"):
        load_config(folder)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": MOST_LAYERS}, {"vocab_size": 2**24}, {"hidden_size": 2**20}])
def test_weights_too_small_for_their_config(folder, changes):
    """Nothing of the config's size is built: 1024 layers would take half a minute."""
    write_json(folder / "config.json", CONFIG | changes)
    start = time.process_time()
    with pytest.raises(
        ValueError, match=r"config.json asks for \d+ layers and at least \d+ parameters, but the weights"
    ):
        load_weights(folder, load_config(folder))
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "depth", 10**9),
        ("vision_config", "out_hidden_size", None),
        ("vision_config", "deepstack_visual_indexes", 7),
        ("vision_config", "deepstack_visual_indexes", ["x"]),
        ("text_config", "rope_parameters", 7),
        ("text_config", "rope_parameters", {"rope_type": "default", "rope_theta": "inf", "mrope_section": [1]}),
        ("text_config", "rms_norm_eps", float("nan")),
        ("text_config", "head_dim", [128]),
        (None, "image_token_id", "<image>"),
        (None, "video_token_id", -1),
        (None, "text_config", [1]),
        (None, "vision_config", 7),
    ],
)
def test_values_of_a_multimodal_config(tmp_path, section, key, value):
    config = json.loads((resolve("tiny") / "config.json").read_text())
    (config if section is None else config[section])[key] = value
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_config(tmp_path)


ENDLESS = {
    "loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in [[[]]] recursive %}{{ loop([i, i]) }}{{ loop([i, i]) }}{% endfor %}",
    "macro": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "range": "{{ range(10 ** 9) | list | length }}",
    "text": "{{ 'a' * 2000000000 }}",
    "list": "{{ [1] * 2000000000 }}",
    "constant": "{{ ('a' * 1000) | replace('a', 'a' * 1000) | replace('a', 'a' * 1000) | replace('a', 'a' * 1000) }}",
    "power": "{{ 10 ** 99999999 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "sum": "{% set n = namespace(s='a') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "center": "{{ 'a' | center(2000000000) }}",
    "method": "{{ 'a'.center(2000000000) }}",
    "zfill": "{{ 'a'.zfill(2000000000) }}",
    "indent": "{{ 'a\n' | indent(2000000000) }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "format filter": "{{ '%2000000000d' | format(1) }}",
    "format": "{{ '{:2000000000}'.format(1) }}",
    "join": "{{ range(9999) | join('a' * 99999) }}",
    "replace": "{{ ('a' * 9999).replace('a', 'a' * 9999) }}",
    "filters": "{{ " + " ~ ".join(["(range(9999) | map('string') | list | length)"] * 3000) + " }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% for i in [1] %}" * 300 + "{% endfor %}" * 300,
    "length": "a" * 2**18,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_templates_that_never_end(name):
    start = time.process_time()
    environment = BoundedEnvironment() if name == "text" else chat_environment()
    with pytest.raises((TemplateTooLargeError, SyntaxError)), bounded(texts=0):
        environment.from_string(ENDLESS[name]).render()
    assert time.process_time() - start < 8


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% set n = namespace(_a=1) %}{% set n._b = 1 %}"],
)
def test_templates_reach_nothing_of_pythons(template):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError), bounded(texts=0):
        chat_environment().from_string(template).render(messages=[])


def test_chat_templates_are_rendered_as_transformers_does():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (resolve("tiny") / "chat_template.jinja").read_text()
    others = (
        "{%- for m in messages %}\n{%- if loop.first and m.role == 'system' %}{{ '<s>' + m.content[0].text|trim }}\n"
        "{%- else %}{%- for c in m.content if c.type in ['text', 'image'] %}"
        "{{ c.text | default('[' ~ c.type ~ ']') }}{%- endfor %}{%- endif %}{%- endfor %}"
        "{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% if ns.n > 1 %}{% break %}{% endif %}{{ m | tojson }}"
        "{% generation %}{{ m.role.upper()[:2] * 2 }}{% endgeneration %}{% endfor %}",
        "{% macro show(c) %}<{{ c.type }}>{% endmacro %}"
        "{% for m in messages %}{% for c in m['content'] %}{{ show(c) }}{% endfor %}{% endfor %}"
        "{{ messages | map(attribute='role') | join(',') }}{{ 'x' if tools is none else 'y' }}",
    )
    content = [{"type": "image"}, {"type": "text", "text": "revenue <by> & region"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": " Find. "}]},
        {"role": "user", "content": content},
    ]
    for each in (template, *others):
        (expected,), _ = render_jinja_template(
            [messages], chat_template=each, add_generation_prompt=True, eos_token="</s>"
        )
        with bounded(texts=100):
            found = (
                chat_environment()
                .from_string(each)
                .render(messages=messages, tools=None, documents=None, add_generation_prompt=True, eos_token="</s>")
            )
        assert found == expected and found


BAD = ["(a+)+$", "(.*)*x", r"(\w+\s?)*$", "(?:a|a)*b", "(?:(?:a)+b?)+", "(((a*)))*", "(", ")", "a*a*a*a*a*b", "x{1000}"]
BAD += ["(a*a*|b)a*a*"]  # four in a row, by way of the first alternative
GOOD = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"^model\.layers\.(0|1|12)\.self_attn\.(q|k)_proj",
    r"layers\.\d+\.mlp.*",
    "[)(]+",
    r"\(\)*",
    "",
]


@pytest.mark.parametrize("pattern", [*BAD, 7, None, ["a"], "a" * 10_000])
def test_regular_expressions_that_are_refused(pattern):
    with pytest.raises(ValueError, match="tokenizer.json: "):
        check_pattern(pattern, "tokenizer.json")


@pytest.mark.parametrize("pattern", GOOD)
def test_regular_expressions_of_published_models(pattern):
    assert check_pattern(pattern, "tokenizer.json") == pattern


QUERY = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"rank_pattern": {pattern: 4}}, "rank_pattern") for pattern in (*BAD, "[", "*", "(?P<n>a")),
        ({"rank_pattern": [4]}, "rank_pattern is .*expected an object"),
        ({"rank_pattern": "x"}, "rank_pattern is 'x'"),
        ({"alpha_pattern": 7}, "alpha_pattern is 7"),
        ({"rank_pattern": {QUERY: [4]}}, r"r of .*query is \[4\]"),
        ({"lora_alpha": float("inf")}, "lora_alpha of .*query is inf, expected a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha of .*query is nan"),
        ({"lora_alpha": [1]}, "lora_alpha of .*query is"),
        ({"r": 2**40}, "r of .*query is 1099511627776"),
        ({"peft_type": ["LORA"]}, "peft_type"),
    ],
)
def test_adapters_that_are_refused(folder, changes, message):
    write_lora(folder, {QUERY: (32, 32)})
    config = json.loads((folder / "adapter_config.json").read_text())
    load_weights(folder, load_config(folder))
    write_json(folder / "adapter_config.json", config | changes)
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{message}"):
        load_weights(folder, load_config(folder))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}, "regular expression"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "(.*)*x"}, "behavior": "Isolated"},
            "regular expression",
        ),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 999},
            "more than 16 characters",
        ),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 300}, "more than 200 parts"),
        ("normalizer", {"type": "no such"}, "cannot be read"),
        ("model", 7, "cannot be read"),
        ("post_processor", 7, "cannot be read"),
    ],
)
def test_tokenizers_that_are_refused(folder, part, value, message):
    content = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder / "tokenizer.json", content | {part: value})
    with pytest.raises(ValueError, match=rf"tokenizer.*{message}"):
        read_tokenizer(folder)


def test_what_rust_gives_up_with_is_an_error():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(ValueError, match="the tokenizer gave up"), panics_as_errors():
        raise panic("index out of bounds")
    with pytest.raises(ValueError, match="has a lone surrogate"), panics_as_errors():
        raise TypeError("TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]")
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt


def test_a_model_with_an_endless_chat_template(tmp_path):
    for path in resolve("tiny").iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for template in (ENDLESS["loops"], ENDLESS["text"], "{{ messages[7].x.y }}", "{{ 1 + 'a' }}", "{% if %}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(ValueError, match="chat template"):
            open_preprocessor(tmp_path, load_config(tmp_path))
    settings = json.loads((tmp_path / "smart_jax.json").read_text())
    write_json(tmp_path / "smart_jax.json", settings | {"prompt": "{{ visual }}{{ texts | join }}" + ENDLESS["text"]})
    with pytest.raises(ValueError, match="prompt or chat template|chat template"):
        open_preprocessor(tmp_path, load_config(tmp_path))


def test_long_texts_are_rendered(tmp_path):
    """The bound of a value grows with the texts that are put in."""
    preprocessor = open_preprocessor(resolve("tiny"), load_config(resolve("tiny")))
    assert len(preprocessor.tokenize({"text": "oil price " * 120_000})) == preprocessor.settings.max_length
    assert isinstance(preprocessor.tokenize("a").input_ids, np.ndarray)
