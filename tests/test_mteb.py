"""mteb's own evaluation of our models: its figures and rankings are those of `eval` on the same data."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageDraw

import smart_jax
from eval.benchmarks import Benchmark
from eval.methods import run_benchmark
from smart_jax.integrations.mteb import INSTALL, _Items
from tests.small_bert import WORDS, write_sentence_transformer

mteb = pytest.importorskip("mteb")
datasets = pytest.importorskip("datasets")
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

pytestmark = pytest.mark.compiles

README = """---
configs:
- config_name: default
  data_files: [{split: test, path: qrels/test.jsonl}]
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
---
"""


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Nothing of a user's: data sets are converted here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_sentence_transformer(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def tiny():
    return smart_jax.load("tiny")


def sentence(rng, words):
    return " ".join(rng.choice(WORDS, words).tolist())


def text_folder(folder, *, seed=0, queries=12, documents=50):
    """As the hub's mteb/NAME: title and text, grades; one document is empty (several would tie)."""
    rng = np.random.default_rng(seed)
    corpus = [
        {"_id": f"d{i}", "title": sentence(rng, 2) if i % 2 else "", "text": sentence(rng, 9) if i != 8 else ""}
        for i in range(documents)
    ]
    asked = [{"_id": f"q{i}", "text": sentence(rng, 4)} for i in range(queries)]
    qrels = [
        {"query-id": row["_id"], "corpus-id": f"d{d}", "score": int(rng.integers(1, 4))}
        for row in asked
        for d in rng.choice(documents, 4, replace=False)
    ]
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus), ("queries", asked), ("qrels/test", qrels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(README)
    return folder


def metadata(name, folder="none", *, category="t2t", modalities=("text",), prompt=None, kind="Retrieval"):
    return TaskMetadata(
        name=name,
        description="Made for a test.",
        dataset={"path": str(folder), "revision": "1"},
        type=kind,
        category=category,
        modalities=list(modalities),
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        prompt=prompt,
    )


def task(about):
    """A task whose data mteb loads from its folder."""
    return type(about.name, (AbsTaskRetrieval,), {"metadata": about})()


def page(words):
    """A small page with these words on it."""
    image = Image.new("RGB", (96, 64), "white")
    draw = ImageDraw.Draw(image)
    for line, word in enumerate(words.split()):
        draw.text((3, 3 + 12 * line), word, fill="black")
    return image


def image_task(prompt=None, *, top_ranked=None):
    """Texts ask for pages; and the benchmark of ours with the same data."""
    rng = np.random.default_rng(5)
    words = [sentence(rng, 4) for _ in range(21)]
    pages, ids = [page(w) for w in words], [f"page-{i}" for i in range(21)]
    asked = {f"q{i}": sentence(rng, 3) for i in range(6)}
    grades = {q: {ids[d]: int(rng.integers(1, 3)) for d in rng.choice(21, 3, replace=False)} for q in asked}
    kind = "Retrieval" if top_ranked is None else "Reranking"
    about = metadata("PagesForTest", category="t2i", modalities=("text", "image"), prompt=prompt, kind=kind)
    made = task(about)
    made.dataset = {
        "default": {
            "test": {
                "corpus": datasets.Dataset.from_dict(
                    {"id": ids, "image": pages},
                    features=datasets.Features(id=datasets.Value("string"), image=datasets.Image()),
                ),
                "queries": datasets.Dataset.from_dict({"id": list(asked), "text": list(asked.values())}),
                "relevant_docs": grades,
                "top_ranked": top_ranked,
            }
        }
    }
    made.data_loaded = True
    benchmark = Benchmark(
        name="pages",
        queries=[{"text": text} for text in asked.values()],
        query_ids=list(asked),
        corpus=[{"image": png(image)} for image in pages],
        corpus_ids=ids,
        qrels=grades,
        candidates=top_ranked,
        instruction=prompt and prompt.get("query"),
        document_instruction=prompt and prompt.get("document"),
    )
    return made, benchmark


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def evaluate(model, made, folder, **options):
    """mteb's figures and the scores that it was given."""
    options = {"cache": None, "show_progress_bar": False} | options
    result = mteb.evaluate(model, [made], prediction_folder=folder, **options)
    (figures,) = result.task_results[0].scores["test"]
    stored = json.loads((folder / f"{made.metadata.name}_predictions.json").read_text())
    return figures, stored["default"]["test"]


ROWS = {"pooled": (1.0, 0.0), "late": (0.0, 1.0), "hybrid": (1.0, 1.0)}


def assert_equals(figures, predictions, encoder, benchmark, row):
    """The figures of `run_benchmark`, to the five decimals that mteb gives, and the scores of `smart_jax.score`."""
    names = {"ndcg@5": "ndcg_at_5", "ndcg@10": "ndcg_at_10", "recall@10": "recall_at_10", "map@10": "map_at_10"}
    made = run_benchmark(encoder, benchmark, methods=[row], metrics=list(names))
    for ours, theirs in names.items():
        assert figures[theirs] == pytest.approx(made.mean(row, ours), abs=1e-5), ours
    q = encoder.encode_query(benchmark.queries, instruction=benchmark.instruction)
    d = encoder.encode_document(benchmark.corpus, instruction=benchmark.document_instruction)
    expected = smart_jax.score(q, d, pooled_weight=ROWS[row][0], late_weight=ROWS[row][1])
    assert list(predictions) == list(benchmark.query_ids)
    for query, values in zip(benchmark.query_ids, expected, strict=True):
        names = benchmark.corpus_ids if benchmark.candidates is None else benchmark.candidates[query]
        wanted = {name: values[benchmark.corpus_ids.index(name)] for name in names}
        assert predictions[query] == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("row", list(ROWS))
def test_text_task_from_its_folder(tmp_path, bert, row):
    folder = text_folder(tmp_path / "set")
    options = dict(zip(("pooled_weight", "late_weight"), ROWS[row], strict=True))
    if row == "late":
        options |= dict(mesh=smart_jax.make_mesh(), device_bytes=2**22)
    model = smart_jax.mteb_model(bert, **options)
    assert isinstance(model, mteb.SearchProtocol) and not isinstance(model, mteb.EncoderProtocol)
    figures, predictions = evaluate(model, task(metadata("TextsForTest", folder)), tmp_path / "out")
    assert_equals(figures, predictions, model.encoder, Benchmark.load(folder), row)


def test_task_with_images(tmp_path, tiny):
    made, benchmark = image_task()
    model = smart_jax.mteb_model(tiny, pooled_weight=0.0, batch_size=3)
    assert_equals(*evaluate(model, made, tmp_path, encode_kwargs={"batch_size": 5}), tiny, benchmark, "late")


def test_reranking_task(tmp_path, tiny):
    _, whole = image_task()
    rng = np.random.default_rng(2)
    own = {q: [whole.corpus_ids[i] for i in rng.permutation(21)[: 4 + i]] for i, q in enumerate(whole.query_ids)}
    made, benchmark = image_task(top_ranked=own)
    assert_equals(*evaluate(smart_jax.mteb_model(tiny), made, tmp_path), tiny, benchmark, "hybrid")


PROMPT = {"query": "Find the page.", "document": "Read the page."}


@pytest.mark.slow
def test_prompts_of_the_task(tmp_path, tiny):
    made, benchmark = image_task(PROMPT)
    figures, predictions = evaluate(smart_jax.mteb_model(tiny), made, tmp_path / "a")
    assert_equals(figures, predictions, tiny, benchmark, "hybrid")
    without = smart_jax.mteb_model(tiny, task_prompts=False)
    default = replace(benchmark, instruction=None, document_instruction=None)
    assert_equals(*evaluate(without, made, tmp_path / "b"), tiny, default, "hybrid")
    given = smart_jax.mteb_model(tiny, instruction="Which?", document_instruction="This.")
    own = replace(benchmark, instruction="Which?", document_instruction="This.")
    assert_equals(*evaluate(given, made, tmp_path / "c"), tiny, own, "hybrid")


class Recorded:
    """Stands in for an encoder and notes the instructions."""

    def __init__(self, encoder):
        self.encoder, self.instructions = encoder, []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_query(self, items, *, instruction=None, **options):
        self.instructions.append(("query", instruction))
        return self.encoder.encode_query(items, instruction=instruction, **options)

    def encode_document(self, items, *, instruction=None, **options):
        self.instructions.append(("document", instruction))
        return self.encoder.encode_document(items, instruction=instruction, **options)


@pytest.mark.parametrize(
    ("prompt", "prompted", "expected"),
    [
        (PROMPT, ("query", "document"), ["Read the page.", "Find the page."]),
        (PROMPT, ("query",), [None, "Find the page."]),
        (PROMPT, (), [None, None]),
        ({"query": "Find."}, ("query", "document"), [None, "Find."]),
        ("Find it.", ("query", "document"), [None, "Find it."]),  # a plain text is the queries'
        (None, ("query", "document"), [None, None]),  # never mteb's generic one
    ],
)
def test_instructions(tmp_path, bert, prompt, prompted, expected):
    about = metadata("TextsForTest", text_folder(tmp_path / "set", queries=2, documents=9), prompt=prompt)
    model = smart_jax.mteb_model(bert)
    assert model._prompted == ()  # a BERT's texts would be prefixed
    model._prompted, model.encoder = prompted, Recorded(model.encoder)
    evaluate(model, task(about), tmp_path / "out")
    assert model.encoder.instructions == list(zip(("document", "query"), expected, strict=True))


def test_corpus_is_read_row_by_row(tmp_path, tiny, monkeypatch):
    """Never as a whole: at most the encoder's window of pages is decoded at a time."""
    made, _ = image_task()
    read = []
    original = datasets.Dataset.__getitem__

    def counted(self, key):
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", counted)
    evaluate(smart_jax.mteb_model(tiny), made, tmp_path)
    assert sum(isinstance(key, int) for key in read) >= 27 and not any(isinstance(key, slice | list) for key in read)
    assert {key for key in read if isinstance(key, str)} <= {"id", "text"}


def test_rows_as_items():
    rows = [
        {"text": "a.png", "id": "x"},
        {"text": " "},
        {"text": "", "image": b"1"},
        {"image": [b"1", b"2"], "text": "t"},
    ]
    expected = [{"text": "a.png"}, {"text": "NULL"}, {"image": b"1"}, {"text": "t", "images": [b"1", b"2"]}]
    assert list(_Items(rows)) == expected


def test_cached_results_are_those_of_the_same_run(tmp_path, bert, tiny):
    """mteb knows a run by name, revision and experiment: whatever changes scores changes one of them."""

    def key(model):
        meta = model.mteb_model_meta
        return meta.name, meta.revision, meta.experiment_name

    again = key(smart_jax.mteb_model(bert))
    assert again == key(smart_jax.mteb_model(bert, batch_size=3, device_bytes=2**24)) and again[0] == "smart_jax/model"
    config = smart_jax.AdapterConfig(hidden_size=32, layers=(1,))
    adapters = [smart_jax.Adapter(config, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    others = [
        smart_jax.mteb_model(bert, **options)
        for options in (
            dict(late_weight=0.0),
            dict(pooled_weight=0.5),
            dict(storage_dtype="float16"),
            dict(dtype="bfloat16"),
            dict(instruction="Find."),
            dict(document_instruction="Find."),
            dict(task_prompts=True),
            dict(settings={"max_length": 9}),
            *(dict(adapter=adapter) for adapter in adapters),
        )
    ]
    assert len({again, *map(key, others)}) == 1 + len(others)
    write_sentence_transformer(tmp_path / "model", seed=1)
    assert key(smart_jax.mteb_model(tmp_path / "model"))[1] != again[1]
    assert key(smart_jax.mteb_model("tiny"))[:2] == key(smart_jax.mteb_model(tiny))[:2]
    cache = mteb.ResultCache(tmp_path / "cache")
    folder = text_folder(tmp_path / "set")
    found = [
        mteb.evaluate(
            smart_jax.mteb_model(bert, late_weight=weight), task(metadata("TextsForTest", folder)), cache=cache
        )
        .task_results[0]
        .scores["test"][0]["ndcg_at_10"]
        for weight in (0.0, 1.0, 0.0)
    ]
    assert found[0] == found[2] != found[1]


def test_tasks_that_the_model_does_not_read(tmp_path, bert, tiny):
    made, _ = image_task()
    with pytest.raises(ValueError, match="supports \\['text'\\], but none overlap"):  # mteb's own check
        mteb.evaluate(smart_jax.mteb_model(bert), made, cache=None)
    corpus = datasets.Dataset.from_dict({"id": ["a"], "text": ["b"]})
    options = dict(hf_split="test", hf_subset="default", encode_kwargs={})
    about = metadata("VideosForTest", category="t2vt", modalities=("text", "video"))
    with pytest.raises(ValueError, match="VideosForTest has documents with video, and this model reads text and image"):
        smart_jax.mteb_model(tiny).index(corpus, task_metadata=about, **options)
    texts = metadata("TextsForTest")
    model = smart_jax.mteb_model(bert)
    with pytest.raises(ValueError, match="no corpus is indexed"):
        model.search(corpus, task_metadata=texts, top_k=1, **options)
    model.index(corpus, task_metadata=texts, **options)
    with pytest.raises(ValueError, match="the document z to rerank is not in the corpus"):
        model.search(corpus, task_metadata=texts, top_k=1, top_ranked={"a": ["z"]}, **options)
    assert model.search(corpus, task_metadata=texts, top_k=1, top_ranked={}, **options) == {"a": {}}
    with pytest.raises(ValueError, match="unknown encode_kwargs precision: .* storage_dtype"):
        model.index(corpus, task_metadata=texts, **options | {"encode_kwargs": {"precision": "int8"}})
    twice = datasets.Dataset.from_dict({"id": ["a", "a"], "text": ["b", "c"]})
    with pytest.raises(ValueError, match="TextsForTest, default, test: document a is there twice"):
        model.index(twice, task_metadata=texts, **options)


def test_what_is_refused(bert, tiny):
    with pytest.raises(ValueError, match="storage_dtype is 'int8': use one of float32, float16"):
        smart_jax.mteb_model(bert, storage_dtype="int8")
    with pytest.raises(ValueError, match="both 0"):
        smart_jax.mteb_model(bert, pooled_weight=0, late_weight=0)
    with pytest.raises(ValueError, match=r"loaded already: pass dtype to smart_jax\.load"):
        smart_jax.mteb_model(tiny, dtype="float32")


def test_importing_the_library_imports_none_of_the_libraries_that_it_has_models_for():
    code = (
        "import sys, smart_jax\n"
        "from smart_jax import Index, integrations\n"
        "others = {'mteb', 'torch', 'datasets', 'sentence_transformers', 'haystack', 'langchain_core'}\n"
        "assert not others & set(sys.modules), others & set(sys.modules)\n"
        "for name in ('mteb', 'haystack', 'langchain_core'):\n"
        "    sys.modules[name] = None\n"  # as if it were not installed
        "for name in ('HaystackRanker', 'LangChainRetriever'):\n"
        "    try:\n"
        "        getattr(integrations, name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error)\n"
        "smart_jax.mteb_model('tiny')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and f"mteb_model needs mteb, and there is no module mteb: {INSTALL}" in done.stderr
    assert "pip install 'smart_jax[haystack]'" in done.stdout and "pip install 'smart_jax[langchain]'" in done.stdout


def test_reranking_keeps_the_best_that_are_asked_for(bert):
    """Keeps those of three candidates, in their order."""
    model, texts = smart_jax.mteb_model(bert), metadata("TextsForTest")
    documents = datasets.Dataset.from_dict({"id": ["a", "b", "c"], "text": ["oil", "price of oil", "a page"]})
    options = dict(hf_split="test", hf_subset="default", encode_kwargs={}, task_metadata=texts)
    model.index(documents, **options)
    queries = datasets.Dataset.from_dict({"id": ["q"], "text": ["oil price"]})
    found = [model.search(queries, top_k=k, top_ranked={"q": ["a", "b", "c"]}, **options)["q"] for k in (3, 2, 1)]
    assert [len(best) for best in found] == [3, 2, 1]
    falling = sorted(found[0], key=found[0].get, reverse=True)
    assert [list(best) for best in found] == [falling, falling[:2], falling[:1]]


@pytest.mark.parametrize(
    ("weights", "kind"), [((1, 0), "dense"), ((0, 1), "late-interaction"), ((1, 1), "late-interaction")]
)
def test_the_kind_of_model_is_that_of_its_late_part(bert, weights, kind):
    model = smart_jax.mteb_model(bert, pooled_weight=weights[0], late_weight=weights[1])
    assert model.mteb_model_meta.model_type == [kind]
