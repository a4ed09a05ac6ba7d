"""BERT text encoders: folder layouts, pooling rules, kept tokens, prompts, adapters, and what is said of bad input."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import smart_jax
from configs import minilm_pages
from eval.benchmarks import Benchmark
from eval.run import evaluate
from smart_jax import forward
from smart_jax.files.checkpoint import SINGLE_FILE, Checkpoint
from smart_jax.inputs import open_preprocessor
from smart_jax.inputs.text import TextPreprocessor
from smart_jax.models import load_config
from smart_jax.models.pooling import read_pooling
from smart_jax.models.weights import load_weights
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from tests.small_bert import SPECIAL_TOKENS, WORDS, write_json, write_plain, write_sentence_transformer
from tests.small_pdf import write_pdf
from tests.training import make_config
from train.data import convert
from train.posttrain import train

pytestmark = pytest.mark.compiles

TOLERANCE = 2e-5
TEXTS = [
    "revenue by region",
    "pump",
    "how does grease find the bearing of a pump",
    "oil " * 30,
    "the report: in a year",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sentence_transformer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def model(folder):
    return smart_jax.load(folder)


@pytest.fixture(scope="module")
def embedded(model):
    return model.encode_document(TEXTS)


def assert_close(a, b):
    np.testing.assert_array_equal(a.offsets, b.offsets)
    np.testing.assert_allclose(a.pooled, b.pooled, atol=TOLERANCE)
    np.testing.assert_allclose(a.tokens, b.tokens, atol=TOLERANCE)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def states(model, text):
    """Returns states of one text after the last layer, [CLS] and [SEP] included, not normalised."""
    row = model.preprocessor.tokenize(text)
    batch = jax.device_put(model.preprocessor.collate([row]))
    return np.asarray(nnx.merge(model.graphdef, model.params)(batch).states)[0, : len(row.input_ids), 0]


# --- encoding ----------------------------------------------------------------------------------------------------


def test_kept_tokens_are_the_words(model, embedded):
    assert np.diff(embedded.offsets).tolist() == [3, 1, 9, 22, 6]  # max_seq_length 24 cuts the fourth
    for i, text in enumerate(TEXTS):
        every = states(model, text)
        np.testing.assert_allclose(embedded[i].tokens, unit(every[1:-1]), atol=TOLERANCE)
        np.testing.assert_allclose(embedded[i].pooled[0], unit(every.mean(0)), atol=TOLERANCE)


def test_cls_pooling(tmp_path, embedded):
    model = smart_jax.load(write_sentence_transformer(tmp_path, "cls"))
    out = model.encode_document(TEXTS)
    np.testing.assert_allclose(out.tokens, embedded.tokens, atol=TOLERANCE)
    np.testing.assert_allclose(out.pooled[0], unit(states(model, TEXTS[0])[0]), atol=TOLERANCE)
    assert (out.pooled * embedded.pooled).sum(-1).max() < 0.99


@pytest.mark.parametrize("batch_size", [1, 3])
def test_independent_of_batch_and_order(model, embedded, batch_size):
    order = [3, 1, 0, 4, 2]
    assert_close(model.encode_document([TEXTS[i] for i in order], batch_size=batch_size), embedded[order])


def test_independent_of_devices(folder, embedded):
    mesh = smart_jax.make_mesh(data=2, fsdp=2, tensor=2)
    assert_close(smart_jax.load(folder, mesh=mesh).encode_document(TEXTS), embedded)


def test_padding_side_does_not_matter(model):
    rows = [model.preprocessor.tokenize(text) for text in TEXTS]
    backbone = nnx.merge(model.graphdef, model.params)
    left, right = (backbone(model.preprocessor.collate(rows, padding_side=side)) for side in ("left", "right"))
    np.testing.assert_allclose(left.pooled, right.pooled, atol=TOLERANCE)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        np.testing.assert_allclose(left.states[i, -n:], right.states[i, :n], atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("text", ["[SEP]", "zzz zzz", "😀"])
def test_text_of_special_tokens_is_scored_by_its_pooled_vector(folder, pooling, text):
    out = smart_jax.load(folder, pooling=pooling).encode_document(["pump", text])
    assert np.diff(out.offsets).tolist() == [1, 1]
    np.testing.assert_allclose(out[1].tokens, out[1].pooled, atol=TOLERANCE)


def test_score_and_search(model, embedded):
    q = model.encode_query(["revenue", "grease the bearing"])
    late = [[(a.tokens @ d.tokens.T).max(1).mean() for d in map(embedded.__getitem__, range(5))] for a in (q[0], q[1])]
    scores = smart_jax.score(q, embedded)
    np.testing.assert_allclose(scores, q.pooled @ embedded.pooled.T + np.array(late), atol=1e-5)
    found, indices = smart_jax.search(q, embedded, k=2)
    np.testing.assert_allclose(found, np.sort(scores, axis=1)[:, :-3:-1], atol=1e-5)
    np.testing.assert_array_equal(indices, np.argsort(-scores, axis=1)[:, :2])


def test_compilations_are_bounded_by_buckets(folder):
    model = smart_jax.load(folder)
    assert model.preprocessor.length_buckets == (16, 24)
    forward.compute.clear_cache()  # other tests have the same shapes
    model.encode_document(["pump " * n for n in range(1, 40)], batch_size=4)
    assert forward.compute._cache_size() == 2


def test_adapter_over_three_layers(model, embedded):
    adapter = Adapter(AdapterConfig(32, dim=12, layers=(-1, 0, 1), pooled_dim=8), rngs=nnx.Rngs(3))
    out = model.with_adapter(adapter).encode_document(TEXTS)
    np.testing.assert_array_equal(out.offsets, embedded.offsets)
    assert out.pooled.shape == (5, 8) and out.tokens.shape[1] == 12
    np.testing.assert_allclose(out.pooled, unit(embedded.pooled[:, :8]), atol=TOLERANCE)
    with pytest.raises(ValueError, match="64"):
        model.with_adapter(Adapter(AdapterConfig(64), rngs=nnx.Rngs(0)))


# --- prompts and lengths -----------------------------------------------------------------------------------------


def prompted(tmp_path, found):
    write_json(write_sentence_transformer(tmp_path) / "config_sentence_transformers.json", found)
    return smart_jax.load(tmp_path)


def words(model, row):
    return model.preprocessor.tokenizer.decode(row.input_ids[row.keep])


def test_no_prompt_by_default(model, embedded):
    assert_close(model.encode_query(TEXTS), embedded)


def test_prompts_are_prefixes(tmp_path, embedded):
    model = prompted(tmp_path, {"prompts": {"query": "query: ", "passage": "document: "}})
    row = model.preprocessor.tokenize
    assert words(model, row("oil")) == "document : oil" and words(model, row("oil", instruction="find ")) == "find oil"
    assert words(model, row({"text": "oil", "instruction": "find "}, instruction="query: ")) == "find oil"
    assert_close(model.encode_document(TEXTS, instruction=""), embedded)
    assert_close(model.encode_query(["oil"]), model.encode_document(["query: oil"], instruction=""))


def test_default_prompt(tmp_path):
    preprocessor = prompted(tmp_path, {"prompts": {"any": "find "}, "default_prompt_name": "any"}).preprocessor
    assert preprocessor.settings.query_instruction == preprocessor.settings.default_instruction == "find "


def test_settings_file_comes_before_the_other_files(tmp_path):
    write_sentence_transformer(tmp_path)
    settings = {"pooling": "cls", "max_length": 8, "query_instruction": "find ", "length_buckets": [4]}
    write_json(tmp_path / "smart_jax.json", settings)
    model = smart_jax.load(tmp_path)
    assert model.config.pooling == "cls" and model.preprocessor.length_buckets == (4, 8)
    assert words(model, model.preprocessor.tokenize("oil " * 20)) == "oil oil oil oil oil oil"
    assert words(model, model.preprocessor.tokenize("oil", query=True)) == "find oil"
    longer = TextPreprocessor.from_pretrained(tmp_path, model.config, max_length=40)
    assert len(longer.tokenize("oil " * 99).input_ids) == 40


def test_length_is_that_of_the_positions_without_a_file(tmp_path):
    preprocessor = smart_jax.load(write_plain(tmp_path), pooling="mean").preprocessor
    assert preprocessor.length_buckets[-1] == 40
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": True})
    assert smart_jax.load(tmp_path, pooling="mean").preprocessor.length_buckets[-1] == 40


def test_a_tokenizer_that_knows_no_longest_text(tmp_path):
    """transformers writes 10**30 then, which no 64 bits hold."""
    write_sentence_transformer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"model_max_length": int(1e30)})
    assert smart_jax.load(tmp_path).preprocessor.length_buckets[-1] == 24


def test_several_texts_are_joined(model):
    assert words(model, model.preprocessor.tokenize({"text": ["oil", "pump"]})) == "oil pump"


# --- training and evaluation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["adapter", pytest.param("full", marks=pytest.mark.slow)])
def test_trains_on_texts_and_loads_what_it_exported(folder, tmp_path, trainable):
    rows = [
        {"text": f"the {a} of a {b}", "query": f"{a} {b}", "source": "test"} for a in WORDS[:6] for b in WORDS[6:12]
    ]
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source" / "train-00000.parquet")
    convert(tmp_path / "source", "texts", tmp_path / "data")
    settings = {"data__name": "texts", "model": str(folder), "eval__validation_batches": 0, "trainable": trainable}
    train(make_config(tmp_path, tmp_path / "run", steps=3, optimizer__learning_rate=0.01, **settings))
    exported = tmp_path / "run" / trainable.replace("full", "model")
    loaded = smart_jax.load(exported) if trainable == "full" else smart_jax.load(folder, adapter=exported)
    before, after = smart_jax.load(folder).encode_document(TEXTS), loaded.encode_document(TEXTS)
    np.testing.assert_array_equal(after.offsets, before.offsets)
    assert np.abs(after.tokens - before.tokens).max() > 0.01


def test_pages_of_a_pdf_as_texts(folder, tmp_path):
    lines = [
        [(60, 330, 18, "1. Pump"), (60, 300, 9, "grease the bearing")],
        [(60, 330, 18, "2. Oil")],
        [(60, 300, 9, "x")],
    ]
    path = write_pdf(tmp_path / "a.pdf", lines, [("1. Pump", 0, 350), ("2. Oil", 1, 350)])
    config = minilm_pages.get_config(str(path))
    config.model, config.max_length, config.output = str(folder), 16, str(tmp_path)
    (deferred,) = minilm_pages.get_benchmarks(config)
    benchmark = deferred.load()
    assert benchmark.instruction is None and list(benchmark.queries) == ["Pump", "Oil"]
    assert [item["text"].split() for item in benchmark.corpus] == [["grease", "the", "bearing"], ["NULL"], ["x"]]
    encoder = minilm_pages.get_encoder(config)
    assert encoder.preprocessor.length_buckets == (16,)
    rows = evaluate(config, [benchmark], encoder)[0].benchmarks[0].estimates
    assert {"bm25", "pooled", "late", "hybrid"} <= set(rows)


def test_characters_of_a_pdf_that_are_no_text():
    texts = ["a \ud83d\ude00 b", "a \ud83d b"]
    benchmark = Benchmark("a", ["q"], ["q"], texts, ["0", "1"], {"q": {"0": 1}}, texts=texts)
    assert [item["text"] for item in minilm_pages.as_texts(benchmark).corpus] == ["a 😀 b", "a \ufffd b"]


def test_texts_that_are_cut_are_told_of_once(folder, caplog):
    model = smart_jax.load(folder, settings={"max_length": 16})
    model.encode_document(["pump", "oil " * 20, "oil " * 30, "oil"])
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("2 of 4 texts are longer than the model reads, and were cut at their end")
    assert "of item 2, the longest, 16 of 32 tokens" in said
    caplog.clear()
    model.encode_document(["pump", "oil"])
    assert not caplog.records


# --- weights -----------------------------------------------------------------------------------------------------


def test_norms_of_the_first_checkpoints(tmp_path, embedded):
    write_sentence_transformer(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {n.replace(end := ".".join(n.split(".")[-2:]), old.get(end, end)): v for n, v in tensors.items()}
    assert sum("gamma" in name for name in renamed) == 5
    save_file(renamed, tmp_path / "model.safetensors")
    assert_close(smart_jax.load(tmp_path).encode_document(TEXTS), embedded)


def test_names_with_prefix_and_the_heads_of_pre_training(tmp_path, embedded):
    write_sentence_transformer(tmp_path)
    tensors = {f"bert.{name}": value for name, value in load_file(tmp_path / SINGLE_FILE).items()}
    extra = ("bert.pooler.dense.weight", "bert.embeddings.position_ids", "cls.predictions.bias")
    save_file(tensors | {name: np.ones(4, np.float32) for name in extra}, tmp_path / SINGLE_FILE)
    assert_close(smart_jax.load(tmp_path).encode_document(TEXTS), embedded)


def test_weights_are_complete_both_ways(tmp_path):
    config = load_config(write_sentence_transformer(tmp_path))
    tensors = load_file(tmp_path / SINGLE_FILE)
    moved = tensors.pop("encoder.layer.1.attention.self.query.bias")
    save_file(tensors | {"encoder.layer.9.bias": moved}, tmp_path / SINGLE_FILE)
    with pytest.raises(ValueError, match=r"not use: encoder.layer.9.bias.*fills: encoder.layer.1.attention.self.query"):
        load_weights(tmp_path, config)


# --- what is said ------------------------------------------------------------------------------------------------


def test_plain_folder_needs_a_pooling_rule(tmp_path):
    write_plain(tmp_path)
    with pytest.raises(ValueError, match=r"load\(folder, pooling='mean'\).*smart_jax.json"):
        smart_jax.load(tmp_path)
    assert smart_jax.load(tmp_path, pooling="cls").config.pooling == "cls"
    write_json(tmp_path / "smart_jax.json", {"pooling": "mean"})
    assert smart_jax.load(tmp_path).config.pooling == "mean"
    with pytest.raises(ValueError, match="pooling is 'last', expected 'mean' or 'cls'"):
        smart_jax.load(tmp_path, pooling="last")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling pooling_mode_max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooling cls, mean"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "pooling mean without the prompt"),
        ({"pooling_mode": "lasttoken"}, "pooling lasttoken"),
        ({}, "by nothing"),
    ],
)
def test_pooling_that_is_not_computed(tmp_path, found, message):
    write_json(tmp_path / "1_Pooling" / "config.json", found)
    with pytest.raises(ValueError, match=f"{message}.*pooling='mean'"):
        read_pooling(tmp_path)


def test_newer_spelling_of_the_pooling(tmp_path):
    write_json(tmp_path / "modules.json", [{"type": "a.b.Pooling", "path": "2_Pooling"}])
    write_json(tmp_path / "2_Pooling" / "config.json", {"pooling_mode": "cls", "include_prompt": True})
    assert read_pooling(tmp_path) == "cls"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("modules.json", "[", "modules.json is not valid JSON"),
        ("modules.json", "{}", "modules.json is a dict, expected a list"),
        ("modules.json", "[3]", "modules.json: a module lacks its type"),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense", "path": "2"}]', "Dense is not supported"),
        ("1_Pooling/config.json", "[]", "config.json is a list, expected a dict"),
        ("smart_jax.json", "[]", "smart_jax.json is a list, expected a dict"),
        ("smart_jax.json", '{"min_pixels": 4}', "unknown settings min_pixels; known are max_length"),
        ("smart_jax.json", '{"max_length": 41}', "max_length is 41, but the model has 40 positions"),
        ("smart_jax.json", '{"max_length": 2}', r"max_length is 2, which \[CLS\] and \[SEP\] fill"),
        ("smart_jax.json", '{"length_buckets": []}', r"length_buckets is \[\], expected a list of positive"),
        ("smart_jax.json", '{"query_instruction": 3}', "query_instruction is 3, expected a text"),
        ("smart_jax.json", r'{"query_instruction": "\ud800"}', r"smart_jax.json: query_instruction is '.ud800'"),
        ("sentence_bert_config.json", "3", "sentence_bert_config.json holds a JSON int"),
        ("sentence_bert_config.json", '{"max_seq_length": "x"}', "sentence_bert_config.json: max_seq_length is 'x'"),
        ("config_sentence_transformers.json", '{"prompts": ["x"]}', r"transformers.json: prompts are \['x'\],"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 7}}', "transformers.json: prompts are an object"),
        ("config_sentence_transformers.json", r'{"prompts": {"query": "\ud800"}}', "json: prompts are an object"),
        ("config_sentence_transformers.json", '{"default_prompt_name": [1]}', r"default_prompt_name is \[1\],"),
    ],
)
def test_bad_files(tmp_path, file, text, message):
    write_sentence_transformer(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        smart_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', only 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"vocab_size": 9}, "gives shape|token ids up to"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_bad_config(tmp_path, change, message):
    write_sentence_transformer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    write_json(tmp_path / "config.json", {key: value for key, value in config.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        smart_jax.load(tmp_path)


def test_the_last_token_of_a_vocabulary_is_in_it(folder):
    config, checkpoint = load_config(folder), Checkpoint(folder)
    largest = max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values())
    open_preprocessor(checkpoint, dataclasses.replace(config, vocab_size=largest + 1))
    with pytest.raises(ValueError, match=f"ids up to {largest}, the backbone's vocabulary ends before {largest}:"):
        open_preprocessor(checkpoint, dataclasses.replace(config, vocab_size=largest))


def test_tokenizer_without_cls(tmp_path):
    write_sentence_transformer(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", tokenizer | {"post_processor": None})
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(ValueError, match=r"no \[CLS\]"):
        smart_jax.load(tmp_path)


def test_images_and_videos_are_refused(model, tmp_path):
    page = Image.new("RGB", (64, 64))
    page.save(tmp_path / "page.png")
    for item in (page, tmp_path / "page.png", {"text": "a page", "image": page}):
        with pytest.raises(ValueError, match=r"item 1 has an image, but this model \(bert\) reads text only"):
            model.encode_document(["pump", item])
    with pytest.raises(ValueError, match="item 0 has a video, but this model"):
        model.encode_document([{"video": np.zeros((4, 64, 64, 3), np.uint8)}])


@pytest.mark.usefixtures("unchecked")
def test_bad_sizes(model):
    row = model.preprocessor.tokenize("oil")
    for bad, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"length": 2}, "length is 2"),
        ({"patches": 64}, "patches is 64, but bert reads no images"),
        ({"padding_side": "middle"}, "middle"),
    ):
        with pytest.raises(ValueError, match=message):
            model.preprocessor.collate([row], **bad)
    with pytest.raises(ValueError, match="no items"):
        model.preprocessor.collate([])


def test_folder_with_a_vocabulary_alone(tmp_path):
    """As BERT checkpoints were first published."""
    folder = write_plain(tmp_path)
    expected = smart_jax.load(folder, pooling="mean").encode_document(TEXTS)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL_TOKENS, *WORDS)) + "\n")
    found = smart_jax.load(folder, pooling="mean").encode_document(TEXTS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_heads_are_of_other_architectures(folder):
    with pytest.raises(ValueError, match="unknown settings head; known are max_length"):
        smart_jax.load(folder, head="gme")


def test_words_are_in_the_vocabulary(model):
    assert not np.isin(model.preprocessor.tokenize(" ".join(WORDS)).input_ids, [1]).any()
