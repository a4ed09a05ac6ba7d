"""Hard-negative mining: what is chosen, by brute force; what is written; the command on pages."""

import numpy as np
import pyarrow as pa
import pytest

from tests.fake_encoder import FakeEncoder
from tests.indexes import random_embeddings
from tests.test_data import pair, write
from train.data import Example, content_hash, convert, open_split
from train.data import mine as module
from train.data.mine import Corpus, MineConfig, Ranked, choose, main, mine, search

VOCABULARY = [f"word{i}" for i in range(30)]


def examples(count=40, seed=0):
    """Queries of some words of their document; two queries ask for two documents, two documents are equal."""
    rng = np.random.default_rng(seed)
    documents = [" ".join(rng.choice(VOCABULARY, 6, replace=False)) for _ in range(count)]
    documents[7] = documents[3]
    queries = [" ".join(document.split()[:3]) for document in documents]
    queries[12] = queries[5]
    return [Example(str(i), {"text": q}, {"text": d}) for i, (q, d) in enumerate(zip(queries, documents, strict=True))]


def texts(folder, made):
    """The examples as a converted data set."""
    rows = [pair(i, query=e.query["text"], text=e.document["text"]) for i, e in enumerate(made)]
    write(folder / "source" / "train-00000-of-00001.parquet", rows, drop=("image",), text=pa.string())
    convert(folder / "source", "texts", folder, validation_ratio=0.2)


class Exact(FakeEncoder):
    """Rounds nothing, so that near ties are ordered as the oracle orders them."""

    def _encode(self, items, **options):
        return super()._encode(items, **(options | {"dtype": np.float32}))


def oracle(encoder, made, config):
    """Every query's negatives before any is drawn, as texts, by float64 scores of all pairs."""
    chosen = []
    for example in made:
        scores = {}
        query = example.query["text"]
        for text in dict.fromkeys(e.document["text"] for e in made):
            pooled = encoder.pooled(query) @ encoder.pooled(text)
            late = np.mean([max(q @ d for d in encoder.tokens(text)) for q in encoder.tokens(query)])
            scores[text] = config.pooled_weight * pooled + config.late_weight * late
        positives = {e.document["text"] for e in made if e.query == example.query}
        most = config.margin * scores[example.document["text"]]
        others = sorted((text for text in scores if text not in positives), key=lambda text: -scores[text])
        kept = [text for text in others[config.skip : config.depth] if scores[text] <= most]
        chosen.append(kept[: config.negatives])
    return chosen


@pytest.mark.compiles
@pytest.mark.parametrize(
    "config",
    [
        MineConfig(negatives=3, depth=10),
        MineConfig(negatives=2, depth=6, skip=2, margin=0.6),
        MineConfig(negatives=3, depth=5, margin=0.8, late_weight=0.0),
        MineConfig(negatives=4, depth=100, margin=2.0, pooled_weight=0.2),
    ],
)
def test_equals_brute_force(config, monkeypatch):
    monkeypatch.setattr(module, "PART", 7)  # documents are searched in six parts
    encoder, made = Exact(noise=0.5), examples()
    corpus = Corpus(made, "made")
    assert len(corpus) == 39
    found = search(encoder, made, corpus, config)
    chosen, drawn = choose(found, corpus, config)
    expected = oracle(encoder, made, config)
    assert drawn == sum(config.negatives - len(own) for own in expected)
    for i, (own, best) in enumerate(zip(chosen, expected, strict=True)):
        names = [corpus.item(d)["text"] for d in own]
        assert names[: len(best)] == best
        assert len(set(names)) == config.negatives
        positives = {e.document["text"] for e in made if e.query == made[i].query}
        assert not positives & set(names)
    assert choose(found, corpus, config) == (chosen, drawn)


def test_writes_the_data_set_again(tmp_path):
    texts(tmp_path, examples())
    done = mine(FakeEncoder(), tmp_path, "texts", "mined", MineConfig(negatives=2, depth=8))
    assert done.path == tmp_path / "mined" and not (tmp_path / ".mined.partial").exists()
    for split in ("train", "validation"):
        before, after = open_split(tmp_path, "texts", split), open_split(tmp_path, "mined", split)
        assert len(before) == len(after) == done.examples[split] > 3
        inside = {content_hash(before[i].document) for i in range(len(before))}
        for i in range(len(before)):
            old, new = before[i], after[i]
            assert (old.id, old.query, old.document, old.source) == (new.id, new.query, new.document, new.source)
            names = {content_hash(item) for item in new.negatives}
            assert len(names) == 2 and names <= inside - {content_hash(old.document)}


def test_what_can_not_be_mined(tmp_path):
    texts(tmp_path, examples())

    def run(**changes):
        options = {"name": "texts", "out": "mined", "config": MineConfig(negatives=2, depth=8)} | changes
        return mine(FakeEncoder(), tmp_path, **options)

    with pytest.raises(ValueError, match="'Mined'"):
        run(out="Mined")
    with pytest.raises(ValueError, match="choose another name"):
        run(out="texts")
    with pytest.raises(FileNotFoundError, match="no data set 'nothing'"):
        run(name="nothing")
    with pytest.raises(ValueError, match="none of the splits test, but train, validation"):
        run(splits=["test"])
    with pytest.raises(ValueError, match="too few for 60 negatives"):
        run(config=MineConfig(negatives=60))
    assert not (tmp_path / "mined").exists() and not (tmp_path / ".mined.partial").exists()
    run()
    with pytest.raises(FileExistsError, match="--overwrite"):
        run()
    run(overwrite=True)
    with pytest.raises(ValueError, match="example 'v' has a video"):
        Corpus([Example("v", {"text": "q"}, {"video": "a.mp4"})], "made")


@pytest.mark.parametrize("wrong", [{"negatives": 0}, {"depth": 3}, {"skip": -1}, {"margin": 0.0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MineConfig(**wrong)


@pytest.mark.compiles
def test_command_on_pages(tmp_path, capsys):
    from tests.test_data import colpali

    convert(colpali(tmp_path / "colpali"), "pages", tmp_path, validation_ratio=0.2)
    where = ["--data", str(tmp_path), "--name", "pages", "--out", "mined"]
    main(["--model", "tiny", *where, "--negatives", "2", "--depth", "5", "--late_weight", "0.5"])
    assert "of 76 negatives were drawn at random" in capsys.readouterr().out
    example = open_split(tmp_path, "mined")[0]
    assert [list(item) for item in example.negatives] == [["image"], ["image"]]
    with pytest.raises(SystemExit, match=r"train\.data\.mine: .*mined' exists: pass overwrite"):
        main(["--model", "tiny", *where])


def test_a_negative_may_score_as_much_as_the_margin_says():
    """Half the positive's score, exactly, is kept; what is above it is not."""
    made = [Example(str(i), {"text": f"query {i}"}, {"text": f"text {i}"}) for i in range(4)]
    corpus = Corpus(made, "made")
    ranked = Ranked(
        documents=np.array([[0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]]),
        scores=np.array([[1, np.nextafter(np.float32(0.5), 1), 0.5, 0.25]] * 4, np.float32),
        own=np.ones(4, np.float32),
        queries=random_embeddings(4),
    )
    chosen, drawn = choose(ranked, corpus, MineConfig(negatives=2, depth=4, margin=0.5))
    assert (chosen, drawn) == ([[2, 3], [2, 3], [1, 3], [1, 2]], 0)
