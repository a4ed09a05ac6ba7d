"""Clean-up of queries: letter by letter as the paper's programs do it, and on the way to a batch."""

import jax
import pytest

import smart_jax
from smart_jax.runtime import make_mesh
from train.config import DataConfig
from train.data import Batcher, Example, clean_query

CASES = [
    ("placeholders", "<image>\nWhat is  shown?", "What is shown?"),
    ("placeholders", "a<IMAGE>b<Video>c <|image_1|> d <|video_12|>", "a b c d"),
    ("placeholders", " tabs\tand\r\nlines ", "tabs and lines"),
    ("placeholders", "a < image > of <images> and <|image|>", "a < image > of <images> and <|image|>"),
    ("sentence", "which page", "which page."),
    ("sentence", "which page?", "which page?"),
    ("sentence", "which\r\npage! ", "which\npage!"),
    ("sentence", 'the "last" ', 'the "last.'),
    ("sentence", " a  <image>", " a  <image>."),
    ("none", " <image>  x", " <image>  x"),
]


@pytest.mark.parametrize(("how", "text", "expected"), CASES)
def test_texts_are_cleaned_as_in_the_papers_programs(how, text, expected):
    item = {"text": text, "fps": 2}
    assert clean_query(item, how) == {"text": expected, "fps": 2} and item["text"] == text
    assert clean_query({"video": "x.mp4"}, how) == {"video": "x.mp4"}


@pytest.mark.parametrize(("how", "text"), [("placeholders", " <image> "), ("sentence", ' "" ')])
def test_a_query_of_which_nothing_is_left_is_named(how, text):
    with pytest.raises(ValueError, match="query of example '3': nothing is left of .* set data.clean_queries=none"):
        clean_query({"text": text}, how, name="query of example '3'")


@pytest.mark.compiles
def test_batches_are_of_clean_queries_and_of_documents_as_they_are():
    preprocessor = smart_jax.load("tiny").preprocessor
    mesh = make_mesh(devices=jax.devices()[:1])
    dirty, clean = (
        [Example(str(i), {"text": f"{mark}page {i}"}, {"text": f"<image>  {i}"}) for i in range(2)]
        for mark in ("<image>  ", "")
    )

    def batch(how, examples):
        return Batcher(preprocessor, DataConfig(clean_queries=how), mesh)(examples)

    found, expected = batch("placeholders", dirty), batch("none", clean)
    assert found.queries.input_ids.tolist() == expected.queries.input_ids.tolist()
    assert found.documents.input_ids.tolist() == expected.documents.input_ids.tolist()
    assert batch("none", dirty).queries.input_ids.tolist() != expected.queries.input_ids.tolist()


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="data.clean_queries is 'x': choose one of none, placeholders, sentence"):
        DataConfig(clean_queries="x")
