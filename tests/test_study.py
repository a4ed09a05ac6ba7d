"""The study and token geometry: against plain NumPy and `run_benchmark`, on an encoder without a model."""

import csv
import dataclasses
import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import smart_jax
from configs import study as study_config
from eval.benchmarks import Benchmark
from eval.methods import Options, run_benchmark
from eval.ranking import query_metrics
from eval.studies import Subject, run_geometry, run_study
from eval.studies.geometry import gaps, mean_cosine
from eval.studies.geometry_report import markdown
from eval.studies.lines import front, pareto
from eval.studies.maxima import maxima, shares
from eval.studies.prompt_words import prompt_words
from eval.studies.settings import Reducer, parse
from eval.studies.study import encode, sections_of
from smart_jax.config_files import load_module
from smart_jax.inputs.item import parse_item
from smart_jax.retrieval.states import States
from tests.fake_encoder import FakeEncoder

WORDS = [f"word{i}" for i in range(40)]
METRICS = ("ndcg@5", "hit@1")


def benchmark(name="words", *, queries=30, pages=25, seed=0, local=False):
    """Pages of words; queries are some of a page's words, and words of other pages."""
    rng = np.random.default_rng(seed)
    corpus = [" ".join(rng.choice(WORDS, 9)) for _ in range(pages)]
    asked = rng.integers(pages, size=queries)
    texts = [" ".join([*rng.choice(corpus[i].split(), 2), *rng.choice(WORDS, 2)]) for i in asked]
    ids, candidates = [f"q{i}" for i in range(queries)], None
    if local:
        candidates = {
            q: [f"d{i}" for i in {a, *rng.integers(pages, size=6).tolist()}] for q, a in zip(ids, asked, strict=True)
        }
    return Benchmark(
        name=name,
        queries=texts,
        query_ids=ids,
        corpus=corpus,
        corpus_ids=[f"d{i}" for i in range(pages)],
        qrels={q: {f"d{i}": 1} for q, i in zip(ids, asked, strict=True)},
        candidates=candidates,
    )


@dataclasses.dataclass
class Prompting(FakeEncoder):
    """Two layers, and words of a prompt around every item; the lower layer is noisier."""

    depth: int = 1
    prompt: bool = True

    def states(self, items, *, instruction=None, query=False, layers, batch_size=None, dtype=np.float16, **options):
        texts = [" ".join(parse_item(item).texts) for item in items]
        start, end = ("query:" if query else "page:", "end") if self.prompt else ("", "")
        texts = [f"{start} {text} {end}".strip() for text in texts]
        found = self._encode(texts, dtype=dtype)
        rng = np.random.default_rng(len(texts))
        noisy = found.tokens[:, None] + np.abs([[[layer + 1]] for layer in layers])[:, 0] * 0.3 * rng.standard_normal(
            (len(found.tokens), len(layers), self.width)
        )
        norms = np.linalg.norm(noisy, axis=-1)
        ids = [zlib.crc32(word.encode()) >> 1 for text in texts for word in text.split()]
        return States(
            pooled=found.pooled,
            states=(noisy / norms[:, :, None]).astype(dtype),
            norms=norms.astype(np.float32),
            ids=np.array(ids, np.int32),
            offsets=found.offsets,
            grids=np.zeros((0, 4), np.int32),
            visual_ids=(),
            layers=tuple(layers),
            depth=self.depth,
        )


def config(tmp_path, **changes):
    made = ConfigDict(
        {
            "settings": ("pool 2", "grid 2", "pca 1/2 + int8", "binary", "binary both", "own + pool 2"),
            "weights": (0.0, 0.5, 2.0),
            "layers": "all",
            "sections": "",
            "metrics": METRICS,
            "batch_size": 8,
            "cache": "",
            "memory_gib": 1.0,
            "max_queries": None,
            "max_corpus": None,
            "seed": 0,
            "bootstrap": {"samples": 200, "seed": 0, "level": 0.95},
            "output": str(tmp_path / "study"),
        }
    )
    with made.unlocked():
        made.update(changes)
    return made


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two subjects: one of two benchmarks with a prompt, one of a local benchmark without."""
    subjects = [
        Subject("with prompt", Prompting, [benchmark("first"), benchmark("second", seed=1, queries=20)]),
        Subject("without", lambda: Prompting(prompt=False), [benchmark("local", seed=2, local=True)]),
    ]
    return run_study(config(tmp_path_factory.mktemp("study")), subjects)


def line(study, subject, section, name):
    return next(x for x in study[0].subjects[subject].sections[section] if x.name == name)


def lines(study, subject, section):
    return study[0].subjects[subject].sections[section]


@dataclasses.dataclass
class Plain(FakeEncoder):
    """Embeddings of the study's states."""

    encoder: Prompting = dataclasses.field(default_factory=Prompting)

    def encode_query(self, items, **options):
        return self.encoder.states(items, query=True, layers=(-2, -1)).embeddings()

    def encode_document(self, items, **options):
        return self.encoder.states(items, layers=(-2, -1)).embeddings()


@pytest.mark.compiles
def test_unreduced_rows_are_those_of_an_evaluation(study):
    for subject, prompt, made in (
        (0, True, [benchmark("first"), benchmark("second", seed=1, queries=20)]),
        (1, False, [benchmark("local", seed=2, local=True)]),
    ):
        encoder = Plain(encoder=Prompting(prompt=prompt))
        results = [run_benchmark(encoder, b, methods=("pooled", "late", "hybrid"), metrics=METRICS) for b in made]
        for metric in METRICS:
            pooled, late, hybrid = (
                np.mean([result.mean(kind, metric) for result in results]) for kind in ("pooled", "late", "hybrid")
            )
            unreduced = line(study, subject, "storage", "float16")
            assert unreduced.mean("late", metric) == pytest.approx(late, abs=1e-12)
            assert unreduced.mean("hybrid", metric) == pytest.approx(hybrid, abs=1e-12)
            for section, name in (("storage", "pooled vector only"), ("late weight", "0")):
                assert line(study, subject, section, name).mean("hybrid", metric) == pytest.approx(pooled, abs=1e-12)
            assert line(study, subject, "late weight", "late only").mean("hybrid", metric) == pytest.approx(late)
            for section, name in (("late weight", "1"), ("layers", "-1"), ("words", "all")):
                assert line(study, subject, section, name).mean("hybrid", metric) == pytest.approx(hybrid)


def test_differences_are_from_the_default(study):
    for section, default in (("storage", "float16"), ("late weight", "1"), ("layers", "-1"), ("words", "all")):
        first = line(study, 0, section, default).scores["hybrid"]["ndcg@5"]
        assert dataclasses.astuple(first.difference) == (0, 0, 0)
        for other in lines(study, 0, section):
            figure = other.scores["hybrid"]["ndcg@5"]
            difference = figure.difference
            assert difference.mean == pytest.approx(figure.estimate.mean - first.estimate.mean, abs=1e-12)
            assert difference.low <= difference.mean <= difference.high


def test_bytes_of_a_page(study):
    """Two benchmarks of 25 pages of 11 words, and one of 9; width 16, a pooled vector of 32 bytes, offsets of 8."""
    offsets = 8 * 26 / 25
    expected = {
        "pooled vector only": 32,
        "float16": 32 + offsets + 11 * 32,
        "pool 2": 32 + offsets + 6 * 32,
        "pca 1/2 + int8": 32 + offsets + 11 * (8 + 4),
        "binary": 32 + offsets + 11 * 2,
        "binary both": 32 + offsets + 11 * 2,
        "own + pool 2": 32 + offsets + 5 * 32,
    }
    sizes = {x.name: x.facts["bytes"] for x in lines(study, 0, "storage")}
    assert sizes == pytest.approx(expected)  # no grid without images
    assert "own + pool 2" not in {x.name for x in lines(study, 1, "storage")}  # no prompt


def test_layers(study):
    table = lines(study, 0, "layers")
    assert [x.name for x in table] == ["-2", "-2 centred", "-1", "-1 centred"]
    assert table[0].facts["length"] > table[2].facts["length"] == pytest.approx(1, abs=1e-3)
    assert table[0].mean("late", "ndcg@5") != table[2].mean("late", "ndcg@5")


def test_words(study):
    sizes = {x.name: (x.facts["query tokens"], x.facts["page tokens"]) for x in lines(study, 0, "words")}
    assert sizes == {
        "all": (6, 11),
        "queries' own words": (4, 11),
        "queries' prompt": (2, 11),
        "pages' own tokens": (6, 9),
        "own on both sides": (4, 9),
    }
    assert [x.name for x in lines(study, 1, "words")] == ["all"]
    facts = {x.name: x.facts for x in lines(study, 0, "words")}
    for name in ("pages' own tokens", "own on both sides"):
        assert [facts[name][fact] for fact in ("on prompt", "on copy", "late on copy")] == [0, 0, 0]
    # A query's "query:" is no word of a page, "end" is: at least half of the two prompt words' maxima are on a copy.
    assert facts["queries' prompt"]["on copy"] >= 0.5 > facts["queries' own words"]["on copy"] == 0
    assert 0 < facts["all"]["on copy"] < facts["queries' prompt"]["on copy"]


def test_where_maxima_land():
    """Shares by loops over every query token and page; items begin with two shared words and end in one."""
    rng = np.random.default_rng(0)

    def made(lengths, first):
        ids = [[*first, *rng.integers(100, 200, n), 3] for n in lengths]
        ids[0][2], ids[1][2] = 100, 101
        total = sum(map(len, ids))
        vectors = rng.standard_normal((total + len(ids), 4)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        offsets = np.cumsum([0, *map(len, ids)])
        return States(
            pooled=vectors[: len(ids)],
            states=vectors[len(ids) :, None],
            norms=np.ones((total, 1), np.float32),
            ids=np.concatenate(ids).astype(np.int32),
            offsets=offsets,
            grids=np.zeros((0, 4), np.int32),
            visual_ids=(),
            layers=(-1,),
            depth=1,
        )

    queries, corpus = made([2, 5, 1, 3], (7, 8)), made([4, 1, 9], (8, 9))
    asked = [i - a in (0, 1) or i == b - 1 for a, b in itertools.pairwise(queries.offsets) for i in range(a, b)]
    found = maxima(queries, corpus)
    for token, is_prompt in enumerate(asked):
        rows = []
        for a, b in itertools.pairwise(corpus.offsets):
            values = corpus.states[a:b, 0] @ queries.states[token, 0]
            at = int(values.argmax())
            on_prompt = at in (0, 1, b - a - 1)
            on_copy = on_prompt and is_prompt and corpus.ids[a + at] == queries.ids[token]
            rows.append([values[at], on_prompt, on_copy, values[at] * on_copy])
        expected = np.mean(rows, axis=0)
        np.testing.assert_allclose([x[token] for x in found], expected, atol=1e-6)
    assert found.on_copy.sum() > 0
    whole = shares(found, np.ones(len(asked), bool), queries)
    parts = [slice(a, b) for a, b in itertools.pairwise(queries.offsets)]
    assert whole["on prompt"] == pytest.approx(np.mean([found.on_prompt[p].mean() for p in parts]))
    late, on_copy = (np.mean([x[p].mean() for p in parts]) for x in (found.value, found.value_on_copy))
    assert whole["late on copy"] == pytest.approx(on_copy / late)
    assert shares(found, np.zeros(len(asked), bool), queries) == {"on prompt": 0, "on copy": 0, "late on copy": 0}


def test_some_sections_alone(tmp_path):
    report, files = run_study(config(tmp_path, sections="words"), [Subject("a", Prompting, [benchmark()])])
    assert list(report.subjects[0].sections) == ["words"] and set(files) == {"study.json", "study.csv", "study.md"}
    with pytest.raises(ValueError, match="unknown sections word: there are storage, late weight, layers, words"):
        sections_of(config(tmp_path, sections="word"))


@pytest.mark.compiles
def test_an_instruction_stands_before_queries_and_pages_of_a_trained_and_an_untrained_model():
    own = study_config.get_config()
    own.pages, own.subjects = 20, "instructed,untrained"
    trained, untrained = study_config.get_subjects(own)
    (made,) = trained.benchmarks
    assert made.instruction == made.document_instruction == own.instruction
    assert made.name == "docstrings-meaning-instructed"
    models = trained.load(), untrained.load()
    assert models[0].fingerprint() != models[1].fingerprint()
    queries = models[1].states(made.queries[:5], instruction=made.instruction, query=True, progress=False)
    words = models[1].preprocessor.tokenizer(own.instruction, add_special_tokens=False)["input_ids"]
    assert prompt_words(queries).sum() >= 5 * len(words)


def test_files(study):
    report, files = study
    assert json.loads(files["study.json"].read_text()) == json.loads(json.dumps(report.to_json()))
    figure = line(study, 0, "storage", "binary").scores["late"]["hit@1"]
    (stored,) = (x for x in report.to_json()["subjects"][0]["sections"]["storage"] if x["name"] == "binary")
    assert stored["bytes"] == line(study, 0, "storage", "binary").facts["bytes"]
    assert stored["late"]["hit@1"] == {
        **dataclasses.asdict(figure.estimate),
        "difference": dataclasses.asdict(figure.difference),
    }
    with files["study.csv"].open() as file:
        rows = list(csv.DictReader(file))
    written = next(x for x in rows if (x["row"], x["kind"], x["metric"]) == ("binary", "late", "hit@1"))
    assert float(written["mean"]) == figure.estimate.mean
    assert float(written["difference_low"]) == figure.difference.low
    text = files["study.md"].read_text()
    assert "first, second (20 queries, 25 pages; 30 queries, 25 pages each)" in text
    means = [line(study, 0, "storage", "pool 2").mean("hybrid", metric) for metric in METRICS]
    assert f"| {means[0]:.3f} / {means[1]:.3f} |" in text
    for name in ("storage.png", "late_weight.png", "layers.png"):
        with Image.open(files[name]) as image:
            assert image.size[0] > 300


def test_pareto_front(study):
    rng = np.random.default_rng(0)
    sizes, qualities = rng.integers(1, 9, 60).tolist(), rng.integers(0, 9, 60).tolist()
    points = list(zip(sizes, qualities, strict=True))

    def beaten(i, j):
        return sizes[j] <= sizes[i] and qualities[j] >= qualities[i] and points[i] != points[j]

    expected = [not any(beaten(i, j) for j in range(60)) for i in range(60)]
    assert pareto(sizes, qualities) == expected
    assert front(lines(study, 0, "storage"), "ndcg@5")[0]  # the smallest
    text = study[1]["study.md"].read_text()
    assert "| pooled vector only • | 32 | 0 |" in text


def test_unknown_settings_and_subjects(tmp_path):
    for name, message in (
        ("pool", "unknown step 'pool'; there are own, pool K"),
        ("pca 0/2", "unknown step"),
        ("int8 + pool 2", "int8 comes last"),
        ("pool 2 + grid 2", "grid 2 comes first"),
        ("pool 2 + own", "own comes first"),
    ):
        with pytest.raises(ValueError, match=message):
            sections_of(config(tmp_path, settings=(name,)))
    assert parse("own + pool 2 + centred pca 1/4 + binary both") == ("own", "pool 2", "centred pca 1/4", "binary both")
    with pytest.raises(ValueError, match=r"the subjects are \['a', 'a'\]"):
        run_study(config(tmp_path), [Subject("a", Prompting, [benchmark()])] * 2)


def test_config():
    own = study_config.get_config("some.pdf")
    assert own.subjects == "tiny,docstrings,pdf" and study_config.get_config().subjects == "tiny,docstrings"
    assert len(sections_of(own)) == 4 and own.layers == "all"
    for setting in ("pool 16", "grid 2", "pca 1/8", "pool 8 + pca 1/4 + binary", "own + pool 2 + binary"):
        assert setting in own.settings
    own.subjects = "tiny,large"
    with pytest.raises(ValueError, match="unknown subjects large: there are tiny, docstrings, pdf, instructed"):
        study_config.get_subjects(own)
    own.model = "tiny"
    with pytest.raises(ValueError, match="no benchmark for the model: add --config.benchmarks=FOLDER"):
        study_config.get_subjects(own)


def test_config_of_ones_own_model(tmp_path):
    benchmark().save(tmp_path / "words")
    own = study_config.get_config()
    own.model, own.benchmarks = str(Path("models") / "mine"), str(tmp_path / "words")
    (subject,) = study_config.get_subjects(own)
    assert subject.name == "mine" and [b.name for b in subject.benchmarks] == ["words"]


def test_prompt_words_are_what_all_items_share():
    rng = np.random.default_rng(0)
    image = 9
    texts = [[1, 2, *rng.integers(10, 20, n).tolist(), *[image] * 4, *rng.integers(20, 30, n), 3] for n in (2, 5, 1, 3)]
    texts[0][2], texts[1][2] = 10, 11
    texts[0][-2], texts[1][-2] = 20, 21

    def states(items):
        ids = np.concatenate(items).astype(np.int32)
        one = np.ones((len(ids), 1, 1), np.float32)
        return States(
            pooled=np.ones((len(items), 1), np.float32),
            states=one,
            norms=one[:, 0],
            ids=ids,
            offsets=np.cumsum([0, *map(len, items)]),
            grids=np.array([[i, 1, 2, items[i].count(image) // 2] for i in range(len(items))], np.int32),
            visual_ids=(image,),
            layers=(-1,),
            depth=1,
        )

    found = np.split(prompt_words(states(texts)), np.cumsum([len(text) for text in texts])[:-1])
    assert [np.flatnonzero(x).tolist() for x in found] == [[0, 1, len(text) - 1] for text in texts]
    pages = [[1, 2, image, image, 3], [1, 2, image, image, 3]]  # the images themselves are no words
    assert prompt_words(states(pages)).tolist() == [True, True, False, False, True] * 2
    nested = [[1, 1], [1, 1, 1]]  # first and last do not overlap
    assert prompt_words(states(nested)).tolist() == [True, True, True, True, False]
    assert not prompt_words(states(pages[:1])).any()


@pytest.mark.compiles
def test_grids_are_pooled_before_the_rest(tmp_path):
    """The embedded model on small pages: sizes, and hybrid scores of pooled states by hand."""
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 255, (64, 128, 3), np.uint8)) for _ in range(4)]
    made = dataclasses.replace(benchmark(queries=6, pages=4), corpus=pages)
    encoder = smart_jax.load("tiny")
    queries, corpus = encode(encoder, made, config(tmp_path, layers="-1"))
    reducer = Reducer(queries, corpus)
    _, d, nbytes = reducer(parse("grid 2 + int8"))
    words = int((~corpus.visual).sum())
    assert corpus.grids[:, 1:].tolist() == [[1, 2, 4]] * 4
    assert len(d.tokens) == 4 * 2 + words
    assert nbytes == 4 * 192 * 2 + len(d.tokens) * (192 + 4) + 5 * 8
    assert reducer.applies(parse("grid 2")) and reducer.applies(parse("own"))
    assert len(reducer(parse("own"))[1].tokens) == 4 * 8


def test_states_are_kept(tmp_path):
    made, own = benchmark(), config(tmp_path, cache=str(tmp_path / "states"), layers="-1,-2")
    first = encode(Prompting(), made, own)

    class Spent(Prompting):
        def states(self, *arguments, **options):
            raise AssertionError("the states were not kept")

    in_memory = encode(Prompting(), made, config(tmp_path, layers="-1,-2"))
    for states, again, fresh in zip(first, encode(Spent(), made, own), in_memory, strict=True):
        assert again.layers == (-1, -2) and again.states.dtype == np.float16
        for name in ("pooled", "states", "norms", "ids", "offsets"):
            np.testing.assert_array_equal(getattr(again, name), getattr(states, name))
            np.testing.assert_array_equal(getattr(again, name), getattr(fresh, name))


def test_queries_follow_where_they_must():
    """Compares the reductions' two sides with the definitions."""
    made = benchmark()
    encoder = Prompting()
    states = [
        encoder.states(items, query=items is made.queries, layers=(-2, -1)) for items in (made.queries, made.corpus)
    ]
    reducer, (q, d) = Reducer(*states), [side.embeddings() for side in states]
    for steps in ("pool 2", "runs 3", "own", "int8", "binary", "pool 2 + binary"):
        np.testing.assert_array_equal(reducer(parse(steps))[0].tokens, q.tokens)
    np.testing.assert_array_equal(reducer(parse("first 1/4"))[0].tokens[:, 0] > 0, q.tokens[:, 0] > 0)
    signs = [np.where(side.tokens > 0, 1, -1) / 4 for side in (q, d)]
    for found, expected in zip(reducer(parse("binary both"))[:2], signs, strict=True):
        np.testing.assert_allclose(found.astype(np.float32).tokens, expected, atol=1e-7)
    for name, width in (("first 1/4", 4), ("pca 1/2", 8), ("centred pca 1/1 + int8", 16), ("pca 1/2 + binary both", 8)):
        assert [side.tokens.shape[1] for side in reducer(parse(name))[:2]] == [width, width]
    mean = d.tokens.astype(np.float64).mean(axis=0)
    centred = [side.tokens - mean for side in (q, d)]
    centred = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in centred]
    products = np.matmul(*(x.T if i else x for i, x in enumerate(centred)))
    q, d, _ = reducer(parse("centred pca 1/1"))
    np.testing.assert_allclose(q.tokens.astype(np.float32) @ d.tokens.astype(np.float32).T, products, atol=5e-3)


def test_config_files_that_are_none(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"empty.py has no get_subjects\(config\)"):
        load_module(str(path), needs="get_subjects")


def test_query_metrics_are_of_all_queries():
    for local in (False, True):
        made = benchmark(local=local)
        encoder = FakeEncoder()
        result = run_benchmark(encoder, made, methods=("late",), metrics=METRICS, options=Options(query_block=7))
        scores = smart_jax.score(
            encoder.encode_query(made.queries), encoder.encode_document(made.corpus), pooled_weight=0.0
        )
        for metric, values in query_metrics(made, np.asarray(scores), METRICS).items():
            np.testing.assert_array_equal(values, result.values["late"][metric])


def test_mean_cosine_is_of_every_pair_of_different_items():
    rng = np.random.default_rng(0)
    lengths = [3, 1, 4]
    x = rng.standard_normal((8, 5)) + 0.5
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    owner = np.repeat(range(3), lengths)
    pairs = [x[i] @ x[j] for i, j in itertools.permutations(range(8), 2) if owner[i] != owner[j]]
    assert mean_cosine(x.astype(np.float32), np.cumsum([0, *lengths])) == pytest.approx(np.mean(pairs), abs=1e-6)
    with pytest.raises(ValueError, match="at least two items to compare, not 1"):
        mean_cosine(x, np.array([0, 8]))


def test_gaps():
    made = benchmark(queries=12, pages=10)
    scores = np.random.default_rng(0).standard_normal((12, 10))
    plain, scaled = [], []
    for i, query in enumerate(made.query_ids):
        right = [j for j, d in enumerate(made.corpus_ids) if d in made.qrels[query]]
        others = [scores[i, j] for j in range(10) if j not in right]
        plain.append(np.mean(scores[i, right]) - np.mean(others))
        scaled.append(plain[-1] / np.std(others))
    assert gaps(made, scores) == pytest.approx((np.mean(plain), np.mean(scaled)), abs=1e-9)


@pytest.mark.slow
def test_geometry_along_models(tmp_path):
    """Two runs of two models, all of them the embedded one: every figure is that of one evaluation."""
    tiny = Path(smart_jax.load("tiny").folder)
    for run, model in itertools.product("ab", ("new", "stage/model")):
        (tmp_path / run / model).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / run / model).symlink_to(tiny)
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 255, (32, 64, 3), np.uint8)) for _ in range(5)]
    made = dataclasses.replace(benchmark(queries=6, pages=5), corpus=pages)
    settings = {"runs": f"{tmp_path / 'a'},{tmp_path / 'b'}", "models": ("new", "stage/model"), "metric": "ndcg@5"}
    own = ConfigDict(settings | {"batch_size": None, "output": str(tmp_path / "out")})
    report, files = run_geometry(own, [made])
    result = run_benchmark(smart_jax.load(tiny), made, methods=("pooled", "late", "hybrid"), metrics=("ndcg@5",))
    for runs in report.models.values():
        assert len(runs) == 2
        for figures in runs:
            for kind in ("pooled", "late", "hybrid"):
                assert figures[kind] == pytest.approx(result.mean(kind, "ndcg@5"), abs=1e-12)
    stored = json.loads(files["geometry.json"].read_text())
    assert stored["models"] == [{"name": name, "runs": runs} for name, runs in report.models.items()]
    assert {figures["late, own words"] for figures in report.models["new"]} != {result.mean("late", "ndcg@5")}
    text, late = markdown(report), result.mean("late", "ndcg@5")
    assert f"| {late:.3f} [{late:.3f}, {late:.3f}] |" in text and "| stage/model |" in text
    with Image.open(files["geometry.png"]) as image:
        assert image.size[0] > 300
    with pytest.raises(FileNotFoundError, match="no model in .*later: train it, or leave it out"):
        run_geometry(ConfigDict({**own.to_dict(), "models": ("new", "later")}), [made])
    with pytest.raises(ValueError, match="at least one run"):
        run_geometry(ConfigDict({**own.to_dict(), "runs": ""}), [made])
