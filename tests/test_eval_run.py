"""Evaluation end to end with a fake encoder: rows against a float64 oracle, BM25, the trainer's hook, the command."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest

import smart_jax
from configs import eval_pdf, eval_tiny
from eval import run as eval_run
from eval.benchmarks import Benchmark, LazyItems
from eval.config import default_config
from eval.methods import METRICS, Options, make_eval_fn, run_benchmark
from eval.methods.bm25 import BM25, words
from eval.reports import read_results
from eval.run import evaluate
from smart_jax.config_files import meanings_of, run_config_file
from smart_jax.retrieval.metrics import compute_metrics
from tests.fake_encoder import FakeEncoder
from tests.processes import run_main, run_python
from train.config import TrainConfig

VOCABULARY = [f"word{i}" for i in range(60)]


def made(*, queries=12, documents=23, local=False, name="made", **changes):
    """Documents of random words, queries of some of a document's words."""
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(VOCABULARY, 6, replace=False)) for _ in range(documents)]
    answers = rng.permutation(documents)[:queries].tolist()
    asked = [" ".join(rng.permutation(texts[d].split())[:3]) for d in answers]
    ids = [f"d{i}" for i in range(documents)]
    candidates = None
    if local:
        others = [[i for i in rng.permutation(documents)[:5] if i != d] for d in answers]
        candidates = {f"q{q}": [f"d{i}" for i in (d, *others[q])] for q, d in enumerate(answers)}
    values = dict(
        name=name,
        queries=asked,
        query_ids=[f"q{q}" for q in range(queries)],
        corpus=LazyItems(documents, lambda i: {"text": texts[i]}),
        corpus_ids=ids,
        qrels={f"q{q}": {f"d{d}": 1} for q, d in enumerate(answers)},
        candidates=candidates,
        texts=texts,
        instruction="Find it.",
    )
    return Benchmark(**(values | changes))


def oracle(encoder, benchmark, row, names, weights=(1.0, 1.0)):
    """Every metric of every query from float64 scores, one pair at a time."""
    values = []
    for query_id, query in zip(benchmark.query_ids, benchmark.queries, strict=True):
        own = benchmark.corpus_ids if benchmark.candidates is None else benchmark.candidates[query_id]
        scores = []
        for document_id in own:
            document = benchmark.corpus[benchmark.corpus_ids.index(document_id)]
            pooled = encoder.pooled(query) @ encoder.pooled(document)
            late = np.mean([max(q @ d for d in encoder.tokens(document)) for q in encoder.tokens(query)])
            scores.append({"pooled": pooled, "late": late, "hybrid": weights[0] * pooled + weights[1] * late}[row])
        grades = benchmark.qrels[query_id]
        ranked = [grades.get(own[i], 0) for i in np.argsort(-np.array(scores))]
        values.append(compute_metrics(names, np.array([ranked]), np.array([list(grades.values())])))
    return {name: np.concatenate([v[name] for v in values]) for name in names}


@pytest.mark.parametrize("local", [False, True])
def test_rows_equal_the_oracle(local):
    encoder, benchmark = FakeEncoder(noise=1.5), made(local=local)
    adapted = encoder.with_adapter("turn", pooled_dim=8)
    result = run_benchmark(encoder, benchmark, adapter_encoder=adapted, options=Options(query_block=5))
    assert list(result.values) == [
        *("chance", "bm25", "pooled", "late", "hybrid", "adapter-pooled", "adapter-late", "adapter-hybrid")
    ]
    assert (result.benchmark, result.documents, result.local) == ("made", 23, local)
    for row in ("pooled", "late", "hybrid"):
        for prefix, model in (("", encoder), ("adapter-", adapted)):
            expected = oracle(model, benchmark, row, METRICS)
            for name in METRICS:
                np.testing.assert_allclose(result.values[prefix + row][name], expected[name], atol=1e-9, err_msg=row)
    assert result.mean("late", "mrr") == pytest.approx(result.values["late"]["mrr"].mean())
    assert result.mean("pooled", "mrr") < result.mean("hybrid", "mrr")  # the noise is in the pooled vector


def test_weights_of_the_hybrid_row():
    encoder, benchmark = FakeEncoder(noise=2.0), made()
    result = run_benchmark(encoder, benchmark, methods=["hybrid"], options=Options(pooled_weight=3.0, late_weight=0.5))
    expected = oracle(encoder, benchmark, "hybrid", METRICS, (3.0, 0.5))
    np.testing.assert_allclose(result.values["hybrid"]["mrr"], expected["mrr"], atol=1e-9)
    assert not np.allclose(expected["mrr"], oracle(encoder, benchmark, "hybrid", METRICS)["mrr"])


def test_everything_is_encoded_once_with_its_instruction():
    encoder = FakeEncoder()
    adapted = encoder.with_adapter("turn")
    adapted.calls = []
    run_benchmark(encoder, made(document_instruction="Read."), adapter_encoder=adapted, options=Options(query_block=2))
    assert encoder.calls == adapted.calls == [("query", 12, "Find it."), ("document", 23, "Read.")]


def test_rows_without_a_model_encode_nothing():
    result = run_benchmark(None, made())
    assert list(result.values) == ["chance", "bm25"]
    assert result.mean("bm25", "hit@1") > 0.9 > 0.3 > result.mean("chance", "hit@1")


def test_adapter_that_leaves_the_pooled_vector_alone_has_no_pooled_row():
    encoder = FakeEncoder()
    result = run_benchmark(None, made(), adapter_encoder=encoder.with_adapter("x", pooled_dim=None))
    assert list(result.values) == ["chance", "bm25", "adapter-late", "adapter-hybrid"]


def test_benchmark_without_texts_has_no_bm25_row():
    assert "bm25" not in run_benchmark(FakeEncoder(), made(texts=None)).values
    with pytest.raises(ValueError, match="benchmark made has no texts for the row bm25"):
        run_benchmark(FakeEncoder(), made(texts=None), methods=["bm25"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(methods=["poled"]), "unknown rows 'poled'"),
        (dict(methods=[]), "no rows"),
        (dict(methods=["adapter-late"]), "needs an adapter"),
        (dict(metrics=["ndcg@5", "accuracy"]), "unknown metric 'accuracy'"),
        (dict(options=Options(query_block=0)), "query_block"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark(FakeEncoder(), made(), **options)
    with pytest.raises(ValueError, match="needs an encoder"):
        run_benchmark(None, made(), methods=["late"])


def test_eval_fn_for_a_trainer():
    benchmarks = [made(), made(name="local", local=True)]
    evaluate_fn = make_eval_fn(benchmarks, metrics=("ndcg@5", "mrr"))
    encoder = FakeEncoder(noise=1.0)
    plain, adapted = evaluate_fn(encoder), evaluate_fn(encoder.with_adapter("turn"))
    assert [*plain] == evaluate_fn.metric_names(encoder)
    assert [*adapted] == evaluate_fn.metric_names(encoder.with_adapter("turn"))
    ends = ("made", "local"), ("ndcg@5", "mrr")
    assert set(plain) == {f"{b}/{r}/{m}" for b in ends[0] for r in ("pooled", "late", "hybrid") for m in ends[1]}
    assert set(adapted) == {f"{b}/adapter-{r}/{m}" for b in ends[0] for r in ("late", "hybrid") for m in ends[1]}
    expected = oracle(encoder, benchmarks[1], "late", ["mrr"])["mrr"].mean()
    assert plain["local/late/mrr"] == pytest.approx(expected, abs=1e-9)


def test_bm25_equals_its_formula():
    texts = ["red fox red", "a blue whale swims far", "", "blue fox"]
    queries = ["red fox", "blue blue whale", "nothing known", "the of"]
    corpus = [words(text) for text in texts]
    average = sum(map(len, corpus)) / 4
    expected = np.zeros((4, 4))
    for q, query in enumerate(queries):
        for word in words(query):
            df = sum(word in document for document in corpus)
            idf = math.log(1 + (4 - df + 0.5) / (df + 0.5))
            for d, document in enumerate(corpus):
                tf = document.count(word)
                expected[q, d] += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / average)) if tf else 0
    np.testing.assert_allclose(BM25(texts).score(queries), expected, atol=1e-5)
    assert (expected > 0).sum() == 4
    np.testing.assert_array_equal(BM25(["", "the"]).score(["fox"]), [[0, 0]])


def test_words_of_scripts_without_spaces():
    assert words("Debian 安装手册, über_alles") == ["debian", "安", "装", "手", "册", "über_alles"]
    assert words("한국어 문서") == ["한국어", "문서"]


def config(tmp_path, **changes):
    made_config = default_config()
    made_config.output = str(tmp_path / "out")
    made_config.bootstrap.samples = 50
    made_config.update(changes)
    return made_config


@pytest.mark.compiles
def test_evaluate_writes_the_report(tmp_path):
    benchmarks = [made(), made(name="second", local=True)]
    report, files = evaluate(config(tmp_path, adapter="turn", cache=""), benchmarks, FakeEncoder(noise=1.0))
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [b["name"] for b in stored["benchmarks"]] == ["made", "second", "average"]
    assert stored["config"]["adapter"] == "turn" and "jax" in stored["environment"]["packages"]
    differences = [p["row"] for p in stored["benchmarks"][0]["differences"]]
    assert differences == ["hybrid", "adapter-late", "adapter-hybrid", "adapter-hybrid"]
    assert all(path.is_file() for path in files.values())
    assert read_results(files["json"]).benchmarks == report.benchmarks


def test_evaluate_samples(tmp_path):
    report, _ = evaluate(config(tmp_path, max_queries=4, max_corpus=9), [made()], FakeEncoder())
    assert (report.benchmarks[0].queries, report.benchmarks[0].documents) == (4, 9)


def test_another_seed_draws_another_sample(tmp_path):
    figures = {}
    for seed in (0, 1, 2, 0):
        made_config = config(tmp_path / str(seed), max_queries=4, max_corpus=9, rows=["bm25"])
        made_config.seed = seed
        report, _ = evaluate(made_config, [made(queries=20, documents=60)], None)
        expected = made(queries=20, documents=60).sample(queries=4, corpus=9, seed=seed)
        assert report.benchmarks[0].query_ids == list(expected.query_ids)
        figures.setdefault(seed, report.benchmarks[0].query_ids)
        assert figures[seed] == report.benchmarks[0].query_ids
    assert len({tuple(ids) for ids in figures.values()}) > 1


def test_float16_storage_keeps_the_figures(tmp_path):
    full, _ = evaluate(config(tmp_path, storage_dtype="float32"), [made()], FakeEncoder())
    half, _ = evaluate(config(tmp_path), [made()], FakeEncoder())
    for row in ("pooled", "late", "hybrid"):
        mean = [report.benchmarks[0].estimates[row]["mrr"].mean for report in (full, half)]
        assert mean[0] == pytest.approx(mean[1], abs=0.05)


@pytest.mark.compiles
@pytest.mark.parametrize("local", [False, True])
def test_the_references_scorer_gives_the_same_values(tmp_path, local):
    fast, slow = (
        evaluate(config(tmp_path / name, scorer=name), [made(local=local)], FakeEncoder(noise=1.0))[0].benchmarks[0]
        for name in ("fast", "reference")
    )
    assert fast.values == slow.values and "hybrid" in fast.values


def test_bad_configs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="scorer is 'slow'"):
        evaluate(config(tmp_path, scorer="slow"), [made()], FakeEncoder())
    with pytest.raises(ValueError, match="at least one"):
        evaluate(config(tmp_path), [], FakeEncoder())
    with pytest.raises(ValueError, match="names must differ"):
        evaluate(config(tmp_path), [made(), made()], FakeEncoder())
    with pytest.raises(ValueError, match="storage_dtype is 'int8'"):
        evaluate(config(tmp_path, storage_dtype="int8"), [made()], FakeEncoder())
    with pytest.raises(ValueError, match=r"config\.adapter needs an encoder"):
        evaluate(config(tmp_path, adapter="x"), [made()], None)


CONFIG_FILE = """
from eval.config import default_config
from tests.test_eval_run import made
from tests.fake_encoder import FakeEncoder
from tests.processes import run_main, run_python
from train.config import TrainConfig

def get_config(arg=""):
    config = default_config()
    config.noise = 1.0
    config.output = arg
    return config

def get_benchmarks(config):
    return [made()]

def get_encoder(config):
    return FakeEncoder(noise=config.noise)
"""


@pytest.mark.compiles
def test_command(tmp_path):
    (tmp_path / "fake.py").write_text(CONFIG_FILE)
    where = f"--config={tmp_path / 'fake.py'}:{tmp_path / 'out'}"
    done = run_python(
        "-m", "eval.run", where, "--config.noise=3.0", "--config.metrics=('mrr',)", "--config.rows=('pooled','hybrid')"
    )
    assert done.returncode == 0, done.stderr
    assert "| row | mrr |" in done.stdout and "| hybrid − pooled | +" in done.stdout and "| late" not in done.stdout
    plots = ("results.png", "gains.png", "hybrid_pooled.png", "storage.png")
    for name in ("results.json", "results.md", "timing.json", *plots):
        assert str(tmp_path / "out" / name) in done.stdout
        assert (tmp_path / "out" / name).stat().st_size > 0
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["config"]["noise"] == 3.0
    expected = run_benchmark(FakeEncoder(noise=3.0), made(), methods=["hybrid"]).mean("hybrid", "mrr")
    assert stored["benchmarks"][0]["rows"]["hybrid"]["mrr"]["mean"] == pytest.approx(expected, abs=1e-9)


def test_command_refuses_unknown_keys(tmp_path):
    (tmp_path / "fake.py").write_text(CONFIG_FILE)
    done = run_main("eval.run", f"--config={tmp_path / 'fake.py'}:{tmp_path / 'out'}", "--config.nosie=3.0")
    assert done.returncode != 0 and "nosie" in done.stderr and not (tmp_path / "out").exists()


def test_command_on_a_saved_folder(tmp_path):
    benchmark = dataclasses.replace(made(), corpus=list(made().texts))
    benchmark.save(tmp_path / "saved")
    done = run_main(
        "eval.run",
        f"--config=configs/beir_folder.py:{tmp_path / 'saved'}",
        *("--config.rows=('chance','bm25')", f"--config.output={tmp_path / 'out'}"),
    )
    assert done.returncode == 0, done.stderr
    assert "### made (12 queries, 23 documents, global ranking)" in done.stdout
    mean = run_benchmark(None, made(), methods=["bm25"]).mean("bm25", "ndcg@5")
    assert f"| bm25 | {mean:.3f} [" in done.stdout


def test_two_commands_in_one_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["show"])
    for _ in range(2):
        with pytest.raises(SystemExit, match="give a config file: python -m show"):
            run_config_file(lambda config, module: None, example="python -m show --config my.py")


def test_help_lists_keys_with_defaults_and_meanings():
    said = run_main("eval.run", "--config=configs/limit.py", "--help").stdout
    assert "LIMIT: can every pair of documents be the answer to a query?" in said  # the file's docstring
    assert "--config.model=minilm  or what `smart_jax.load` takes" in said  # its comment goes before that of all
    assert "--config.liked=40  attributes of a document" in said
    assert "--config.cache=None  folder of states; None = OUTPUT/embeddings" in said  # of all evaluations
    assert said.index("--config.head=None") < said.index("--config.pooling=None") < said.index("--config.adapter=None")


def test_help_of_a_training():
    said = run_main("train.posttrain", "--help").stdout
    assert "--sweep  KEY=VALUE,VALUE,...: a run for each value" in said
    assert "--config.loss.min_temperature=0.01  floor of a learned temperature" in said  # a comment
    assert "--config.distributed.process=None  number of this one, from 0" in said  # a docstring
    assert "--config.lora.merge=True  export model/, too" in said and "lora.r=128  " in said  # and that of its base
    meanings = meanings_of(TrainConfig) | meanings_of(default_config)
    assert [key for key, meaning in meanings.items() if not meaning] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/limit.py", "--config.modle=x"], 'Did you mean "model" instead of "modle"?'),
        (
            ["--config", "configs/limits.py"],
            "there is no config file configs/limits.py: did you mean configs/limit.py?",
        ),
        (["--config=nowhere/a.py"], "there is no config file nowhere/a.py (from "),
    ],
)
def test_a_mistyped_key_or_file_ends_with_a_message(arguments, message):
    done = run_main("eval.run", *arguments)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_the_embedded_model_is_not_for_other_pages(caplog, monkeypatch):
    monkeypatch.setattr(smart_jax, "load", lambda *_, **__: None)
    monkeypatch.setattr(smart_jax, "make_mesh", lambda *_, **__: None)
    eval_run._load_encoder(default_config(), eval_pdf)
    assert "it will be at chance. Take --config.model=minilm" in caplog.text
    caplog.clear()
    eval_run._load_encoder(default_config(), eval_tiny)
    assert not caplog.text
