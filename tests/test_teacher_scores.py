"""A teacher's scores: from parquet and from mining to the batch, and what is refused on the way."""

import numpy as np
import pyarrow as pa
import pytest

from smart_jax.runtime.mesh import make_mesh
from tests.fake_encoder import FakeEncoder
from tests.test_data import pair, write
from tests.test_mine import examples as mineable
from tests.test_mine import texts
from tests.training import make_config
from train.config import DataConfig
from train.data import Batcher, Example, convert, open_split
from train.data import mine as module
from train.data.mine import MineConfig, mine
from train.setup import load_encoder

TYPES = {"text": pa.string(), "negatives": pa.list_(pa.string())}


def write_rows(folder, given, kind):
    """One row for each list of scores, after one row in a file of its own."""
    rows = [pair(i, text=f"text {i}", negatives=["no", "nein"], scores=s) for i, s in enumerate([[3, 2, 1], *given])]
    write(folder / "train-00000-of-00002.parquet", rows[:1], drop=("image",), **(TYPES | {"scores": kind}))
    write(folder / "train-00001-of-00002.parquet", rows[1:], drop=("image",), **(TYPES | {"scores": kind}))
    return folder


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int32()])
def test_scores_are_converted(tmp_path, kind):
    given = [[1, -2, 3], None, [], [5, None, 7]]
    write_rows(tmp_path / "source", given, pa.list_(kind))
    convert(tmp_path / "source", "scored", tmp_path, validation_ratio=0)
    split = open_split(tmp_path, "scored")
    found = {example.id: example.scores for example in (split[i] for i in range(5))}
    assert [found[f"0000000{i}"] for i in range(4)] == [(3.0, 2.0, 1.0), (1.0, -2.0, 3.0), (), ()]
    np.testing.assert_array_equal(found["00000004"], [5.0, np.nan, 7.0])


def test_data_without_the_column(tmp_path):
    write(tmp_path / "source" / "a.parquet", [pair(i) for i in range(3)])
    convert(tmp_path / "source", "plain", tmp_path, validation_ratio=0)
    assert open_split(tmp_path, "plain")[0].scores == ()
    rows = [pair(i, text=f"text {i}", scores=None) for i in range(3)]
    write(tmp_path / "other" / "a.parquet", rows, drop=("image",), text=pa.string(), scores=pa.null())
    convert(tmp_path / "other", "null", tmp_path, validation_ratio=0)
    assert open_split(tmp_path, "null")[0].scores == ()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1, 2, 3], [1, 2]], "has 2 scores, expected 3, the document's and one for each of its 2 negatives"),
        ([[1, 2, 3], [1, 2, 3, 4]], "has 4 scores, expected 3"),
        ([[1, 2, 3], [1, float("nan"), 3]], "has the score nan: scores are finite"),
        ([[1, 2, 3], [1, 2, float("-inf")]], "has the score -inf: scores are finite"),
        ([[1, 2, 3], [1e39, 2, 3]], r"has the score 1e\+39: scores are finite numbers \(float32\)"),
    ],
)
@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_rows_whose_scores_do_not_fit(tmp_path, scores, message, skip_unreadable):
    """Also where unreadable documents are skipped: these are readable."""
    write_rows(tmp_path / "source", scores, pa.list_(pa.float64()))
    with pytest.raises(ValueError, match=r"row 1 of '.*train-00001-of-00002\.parquet' " + message):
        convert(tmp_path / "source", "a", tmp_path, validation_ratio=0, skip_unreadable=skip_unreadable)
    assert not (tmp_path / "a").exists()


def test_a_column_of_another_type(tmp_path):
    rows = [pair(0, text="a", scores=1.0)]
    write(tmp_path / "source" / "a.parquet", rows, drop=("image",), text=pa.string(), scores=pa.float32())
    with pytest.raises(ValueError, match=r"a\.parquet': column 'scores' is float, expected a list of numbers"):
        convert(tmp_path / "source", "a", tmp_path)


@pytest.mark.compiles
def test_mining_writes_the_models_scores(tmp_path, monkeypatch):
    """Found and drawn at random alike, against float64; the latter are encoded in parts of two documents."""
    monkeypatch.setattr(module, "PART", 2)
    config = MineConfig(negatives=3, depth=4, margin=0.3, pooled_weight=0.7, late_weight=1.5)
    texts(tmp_path, mineable())
    encoder = FakeEncoder(noise=0.5)
    done = mine(encoder, tmp_path, "texts", "mined", config)
    assert 5 < done.random < 120
    for name in ("train", "validation"):
        split = open_split(tmp_path, "mined", name)
        for example in (split[i] for i in range(len(split))):
            query = example.query["text"]
            expected = []
            for text in (example.document["text"], *(negative["text"] for negative in example.negatives)):
                late = np.mean([max(q @ d for d in encoder.tokens(text)) for q in encoder.tokens(query)])
                expected.append(0.7 * (encoder.pooled(query) @ encoder.pooled(text)) + 1.5 * late)
            np.testing.assert_allclose(example.scores, expected, atol=2e-3)  # embeddings are float16


def test_a_batch_has_the_teachers_scores(inputs, tmp_path):
    mesh = make_mesh()
    preprocessor = load_encoder(make_config(inputs, tmp_path / "run"), mesh).preprocessor
    nan = float("nan")
    scores = [(1.0, 2.0, 3.0 + i) for i in range(6)] + [(1.0, nan, 3.0), (1.0, 2.0, nan)]
    made = [Example(f"row {i}", {"text": f"q{i}"}, {"text": f"d{i}"}, ({"text": "a"}, {"text": "b"}), scores=s)
            for i, s in enumerate(scores)]  # fmt: skip
    two, one = (Batcher(preprocessor, DataConfig(negatives=n), mesh, teacher=True) for n in (2, 1))
    np.testing.assert_array_equal(two(made).teacher, np.float32(scores))
    assert Batcher(preprocessor, DataConfig(negatives=2), mesh)(made).teacher is None
    with pytest.raises(
        ValueError, match=r"example 'row 6' lacks a teacher's scores, .* at least one of its first 1 neg"
    ):
        one(made)
    for bad in ((), (nan, 1.0, 2.0), (1.0, nan, nan), (1.0, 2.0)):
        broken = [*made[:3], Example("bad", {"text": "q"}, {"text": "d"}, made[0].negatives, scores=bad), *made[4:]]
        with pytest.raises(ValueError, match=r"example 'bad' lacks .*'scores'.*train\.data\.mine.*loss\.distillation"):
            two(broken)
