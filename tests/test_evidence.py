"""Evidence: its parts are the score, its places are where they are said to be, and its drawings need nothing else."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pypdfium2
import pytest
from flax import nnx
from PIL import Image

import smart_jax
from smart_jax import Adapter, AdapterConfig, Embeddings
from smart_jax.evidence import (
    Box,
    PageText,
    Span,
    TokenSources,
    Traced,
    similarities,
    trace,
    trace_page,
    usual_cosines,
)
from smart_jax.evidence.explain import explain
from smart_jax.evidence.layout import text_lines
from smart_jax.evidence.pdf_page import _characters
from smart_jax.evidence.picture import _font
from smart_jax.inputs import Frame
from tests.backbone import write_checkpoint
from tests.checkpoints import noise_page
from tests.small_bert import write_sentence_transformer
from tests.small_pdf import write_pdf
from tests.test_eval_families import FOLDERS

TEXTS = ["revenue by region", "the report: in a year, how does grease find the pump"]
SMALL = {"min_pixels": 2048, "max_pixels": 16384, "first_pixels": None}


# --- the parts are the score


def check_parts(model, query, document, **weights):
    """The parts sum to what `score` gives, and so does the pooled part by token; returns the evidence."""
    evidence = smart_jax.explain(query, document, model=model, **weights)
    q, d = model.encode_query([query], progress=False), model.encode_document([document], progress=False)
    score = float(smart_jax.score(q, d, **weights)[0, 0])
    assert evidence.score == pytest.approx(score, abs=1e-6)
    assert evidence.pooled + sum(token.share for token in evidence.tokens) == pytest.approx(score, abs=1e-6)
    by_token = evidence.pooled_shares
    if by_token is not None:
        assert by_token.sum() + evidence.rest == pytest.approx(evidence.pooled, abs=1e-9)
    assert len(evidence.tokens) == len(q.tokens)
    return evidence


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", ["gme", "jina_embeddings_v4", "lamra", "lamra_qwen3_vl", "moca", "qwen3_vl_embedding", "vlm2vec"]
)
def test_heads_of_every_kind(head, tmp_path):
    """Heads of each way to pool and to read films; the others differ from one of these in their prompts."""
    changes = {"multi_vector_projector_dim": 8} if head == "jina_embeddings_v4" else {}
    folder = write_checkpoint(tmp_path / "model", model_type=FOLDERS[head][0], **changes)
    settings = SMALL if head == "jina_embeddings_v4" else SMALL | {"video_min_pixels": 2048}
    model = smart_jax.load(folder, head=head, settings=settings)
    for document in (noise_page(150, 90), {"text": TEXTS[1], "image": noise_page(60, 90)}, TEXTS[1]):
        evidence = check_parts(model, TEXTS[0], document, pooled_weight=0.7, late_weight=1.6)
        assert (evidence.pooled_shares is not None) == (head in ("jina_embeddings_v4", "moca"))  # which pool a mean
        if head == "jina_embeddings_v4":  # it keeps all tokens: nothing is left over
            assert abs(evidence.rest) < 1e-5 and evidence.document_shares.sum() == pytest.approx(
                evidence.pooled, abs=1e-5
            )
    if head not in ("jina_embeddings_v4", "moca"):  # which take no videos
        film = {"video": [noise_page(96, 64, seed=i) for i in range(4)]}
        evidence = check_parts(model, TEXTS[0], film)
        frames = evidence.document.sources.frames
        assert [f.seconds for f in frames] == ([None] if head == "gme" else [0.25, 1.25])
        assert [evidence.document.open_picture(i).size for i in range(len(frames))] == [(96, 64)] * len(frames)
    config = AdapterConfig(hidden_size=32, dim=16, pooled_dim=16)
    check_parts(model.with_adapter(Adapter(config, rngs=nnx.Rngs(0))), TEXTS[0], noise_page(150, 90))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return smart_jax.load(write_sentence_transformer(tmp_path_factory.mktemp("bert")))


@pytest.mark.compiles
def test_a_mean_of_token_states_is_told_by_token(bert, tmp_path):
    evidence = check_parts(bert, *TEXTS)
    states = [bert.token_states(text).astype(np.float64) for text in TEXTS]  # [CLS] and [SEP] included
    sums = [rows.sum(axis=0) for rows in states]
    brought = states[0] @ (sums[1] / np.linalg.norm(sums[1])) / np.linalg.norm(sums[0])
    np.testing.assert_allclose(evidence.pooled_shares, brought[1:-1], atol=1e-5)
    assert evidence.rest == pytest.approx(brought[0] + brought[-1], abs=1e-5)
    assert evidence.document_shares.shape == (len(states[1]) - 2,)
    narrow = bert.with_adapter(Adapter(AdapterConfig(hidden_size=32, dim=8, pooled_dim=5), rngs=nnx.Rngs(0)))
    narrowed = check_parts(narrow, *TEXTS)
    full = dataclasses.replace(narrowed.query, parts=None)
    assert explain(full, narrowed.document).pooled_shares is None and narrowed.pooled_shares is not None
    cls = smart_jax.load(write_sentence_transformer(tmp_path, pooling="cls"))
    assert check_parts(cls, *TEXTS).pooled_shares is None


@pytest.mark.compiles
def test_an_item_without_words_keeps_its_mean_whole(bert):
    evidence = check_parts(bert, "[SEP]", TEXTS[1])
    assert evidence.pooled_shares is None and len(evidence.tokens) == 1


@pytest.fixture(scope="module")
def tiny():
    return smart_jax.load("tiny")


@pytest.fixture(scope="module")
def page():
    return noise_page(128, 64)


@pytest.fixture(scope="module")
def evidence(tiny, page):
    others = tiny.encode_document([noise_page(128, 64, seed=i) for i in range(1, 5)], progress=False)
    return smart_jax.explain("the <b>table</b> & its column", page, model=tiny, others=others)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_stored_vectors(tiny, page, dtype):
    q, d = trace(tiny, TEXTS[0], query=True), trace(tiny, page)
    stored = dataclasses.replace(d, embeddings=d.embeddings.astype(dtype))
    found = explain(q, stored)
    assert found.score == pytest.approx(float(smart_jax.score(q.embeddings, stored.embeddings)[0, 0]), abs=1e-6)


# --- lift


def test_usual_cosines_are_a_mean_of_maxima(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = [3, 1, 7, 2]
    tokens = rng.normal(size=(sum(lengths), 5)).astype(np.float32)
    others = Embeddings(tokens[:4], tokens, np.cumsum([0, *lengths]))
    query = Embeddings(tokens[:1], rng.normal(size=(4, 5)).astype(np.float32), [0, 4])
    expected = [np.mean([(others[i].tokens @ token).max() for i in range(4)]) for token in query.tokens]
    np.testing.assert_allclose(usual_cosines(query, others), expected, rtol=1e-5)
    monkeypatch.setattr(similarities, "AT_ONCE", 20)  # four tokens at a time
    np.testing.assert_allclose(usual_cosines(query, others), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="2 queries and 4 documents"):
        usual_cosines(others[:2], others)


# --- places


def unit_rows(*numbers, width=24):
    return np.eye(width, dtype=np.float32)[list(numbers)]


def query_of(*numbers, text="one two three four five"):
    """A query whose words have the directions of these document tokens."""
    words = [(0, text.index(word), text.index(word) + len(word)) for word in text.split()[: len(numbers)]]
    sources = TokenSources(np.full(len(numbers), 2, np.uint8), np.array(words, np.int32))
    return Traced(Embeddings(unit_rows(0), unit_rows(*numbers), [0, len(numbers)]), sources, (text,))


def pictures_document(groups=None, count=1 + 6 + 8 + 2):
    """A word of the prompt, an image of 2 x 3 cells, two frames of a video of 2 x 2, and a word of a text."""
    frames = (Frame("image", 0, 2, 3), Frame("video", 0, 2, 2, 0, 0.25), Frame("video", 0, 2, 2, 1, 1.25))
    kinds = np.array([0] + [1] * 14 + [2, 2], np.uint8)
    sources = TokenSources(kinds, np.int32([[0, 0, 2], [0, 2, 5]]), frames, ("user",))
    tokens = unit_rows(*range(count))
    if groups is not None:
        sources, tokens = sources.grouped(groups), unit_rows(*range(max(groups) + 1))
    pictures = tuple(Image.new("RGB", (60, 40), "white") for _ in frames)
    embeddings = Embeddings(unit_rows(0), tokens, [0, len(tokens)])
    return Traced(embeddings, sources, ("pumps & oil",), pictures)


def test_boxes_are_the_cells_of_the_best_tokens():
    found = explain(query_of(0, 5, 10, 14, 15), pictures_document())
    assert found.boxes() == [
        Box(1, 0, pytest.approx(1 / 3), 0.5, pytest.approx(2 / 3), 1.0),  # the prompt's word, of token 0, has none
        Box(2, 1, 0.5, 0.5, 1.0, 1.0),
        Box(3, 2, 0.5, 0.5, 1.0, 1.0),
    ]
    assert found.highlights() == [(4, Span(0, 0, 5))]  # grown from "pu" to its word
    assert [token.best for token in found.tokens] == [
        "user",
        "image 1, row 1, column 1",
        "video 1 at 0.2 s, row 1, column 1",
        "video 1 at 1.2 s, row 1, column 1",
        "pu",
    ]
    assert [found.heat(i).sum() for i in range(3)] == pytest.approx([1.0] * 3) and found.heat(0)[1, 1] == 1


def test_a_pooled_token_has_the_boxes_of_all_its_cells():
    groups = np.array([0, 1, 1, 2, 1, 1, 2, *[3] * 8, 4, 4])
    found = explain(query_of(1, 4), pictures_document(groups))
    assert [box[2:4] for box in found.boxes()] == [
        (0, 0),
        (pytest.approx(1 / 3), 0),
        (0, 0.5),
        (pytest.approx(1 / 3), 0.5),
    ]
    assert found.tokens[0].best == "image 1, row 0, column 0 and 3 more"
    assert found.heat(0).round(2).tolist() == [[0.25, 0.25, 0], [0.25, 0.25, 0]]
    assert {span.start for _, span in found.highlights()} == {0}
    twice = pictures_document(groups).sources.grouped(np.array([0, 0, 1, 1, 2]))
    assert len(twice) == 3 and twice.members(2) == [15, 16] and len(twice.members(0)) == 5
    with pytest.raises(ValueError, match="none left out"):
        pictures_document().sources.grouped(np.arange(17) * 2)


def test_moments_are_of_the_clip_that_is_heard_there():
    """An image of two cells before two clips of a token and of two: clips are counted apart from pictures."""
    frames = Frame("image", 0, 1, 2), Frame("audio", 0, 1, 1, seconds=0.04), Frame("audio", 1, 1, 2, seconds=0.08)
    sources = TokenSources(np.ones(5, np.uint8), np.zeros((0, 3), np.int32), frames)
    document = Traced(Embeddings(unit_rows(0), unit_rows(*range(5)), [0, 5]), sources, ())
    moments = explain(query_of(1, 2, 4), document).moments()
    assert [moment[:2] for moment in moments] == [(1, 0), (2, 1)]
    assert np.allclose([moment[2:] for moment in moments], [(0, 0.04), (0.04, 0.08)])


def test_sources_are_stored_in_about_a_byte_a_token(tiny):
    sources = TokenSources.of(tiny.preprocessor, noise_page(256, 256))
    arrays = sources.to_arrays()
    assert sum(array.nbytes for array in arrays.values()) < 2.5 * len(sources)
    for original in (sources, pictures_document().sources, pictures_document(np.arange(17) // 2).sources):
        again = TokenSources.from_arrays(original.to_arrays())
        assert again.frames == original.frames and again.pieces == original.pieces and len(again) == len(original)
        assert [again.place(i) for i in range(len(again.kinds))] == [original.place(i) for i in range(len(again.kinds))]
    with pytest.raises(ValueError, match="14 cells in 3 frames"):
        TokenSources.from_arrays(pictures_document().sources.to_arrays() | {"kinds": np.zeros(3, np.uint8)})


@pytest.mark.compiles
def test_frames_of_an_encoded_item_show_themselves(tiny):
    traced = trace(tiny, {"images": [noise_page(64, 96), noise_page(96, 32, seed=1)], "text": "oil"})
    assert [(f.rows, f.columns) for f in traced.sources.frames] == [(3, 2), (1, 3)]
    assert traced.open_picture(1).size == (96, 32) and traced.texts == ("oil",)


# --- pages of PDFs


@pytest.mark.parametrize("rotate", [0, 90])
def test_boxes_of_a_pdf_page_lie_on_its_ink(tmp_path, rotate):
    lines = [(40, 300, 12, "Where the pump stands"), (40, 120, 20, "Grease")]
    document = pypdfium2.PdfDocument(write_pdf(tmp_path / "a.pdf", [lines], [], rotate=rotate))
    page = document[0]
    found = PageText.read(page)
    ink = np.asarray(page.render(scale=3).to_pil().convert("L")) < 128
    outside = ink.copy()
    for words in ("Where the pump stands", "Grease"):
        start = found.text.index(words)
        boxes = found.lines(start, start + len(words))
        assert len(boxes) == 1
        for left, top, right, bottom in boxes:
            rows = slice(int(top * ink.shape[0]), int(bottom * ink.shape[0]) + 1)
            columns = slice(int(left * ink.shape[1]), int(right * ink.shape[1]) + 1)
            assert ink[rows, columns].any()
            outside[rows, columns] = False
    assert ink.sum() > 500 and outside.sum() < 0.02 * ink.sum()
    assert len(found.lines(0, len(found.text))) == 2


def test_letters_below_one_another_are_one_column():
    boxes = np.float32([[0.3, 0.1 * i, 0.3 + w, 0.1 * i + 0.1] for i, w in enumerate((0.06, 0.02, 0.02, 0.06, 0.09))])
    assert len(PageText("oil\U0001f600m", boxes).lines(0, 5)) == 1
    two = np.concatenate([boxes[:3], np.zeros((1, 4), np.float32), boxes[3:]])
    assert len(PageText("oil\nam", two).lines(0, 6)) == 2


def test_pictures_are_lettered_in_the_first_font_that_is_there(monkeypatch):
    there = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    for fonts, name in ((("no-such-font.ttf", there), "DejaVu Sans"), (("no-such-font.ttf",), None)):
        monkeypatch.setattr("smart_jax.evidence.picture.FONTS", fonts)
        _font.cache_clear()
        assert name in (None, _font(14).getname()[0]) and _font(14).getlength("oil") > 5
    _font.cache_clear()


def test_characters_of_pdfium_s_codes():
    assert _characters([0x41, 0, 0xD83D, 0xDE00, 0xFFFE, 0xDC00, 0xD800, 2]) == (
        ["A", " ", "😀", "-", "\ufffd", "\ufffd", "-"],
        [0, 1, 2, 4, 5, 6, 7],
    )


@pytest.mark.compiles
def test_evidence_of_a_pdf_page_is_drawn_on_it(bert, tmp_path):
    lines = [(40, 300, 12, "the report of a year"), (40, 200, 12, "grease")]
    document = pypdfium2.PdfDocument(write_pdf(tmp_path / "a.pdf", [lines], []))
    traced = trace_page(bert, document[0])
    [at] = [i for i in range(len(traced.sources)) if traced.label(i) == "grease"]
    query = trace(bert, "pump", query=True)
    same = Embeddings(query.embeddings.pooled, traced.embeddings.tokens[[at]], [0, 1])
    found = explain(dataclasses.replace(query, embeddings=same, parts=None), traced)
    [box] = found.boxes()
    assert 0.4 < box.top < box.bottom < 0.55 and box.left == pytest.approx(40 / 300, abs=0.01)
    assert found.picture().size[0] == 960 and "<img" in found.html()


# --- drawings


class Parsed(HTMLParser):
    """Tags, attributes and text of a fragment."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.compiles
def test_html_needs_nothing_else_and_says_the_text_as_it_is(evidence):
    parsed = Parsed(evidence.html())
    assert not parsed.open and not [tag for tag, _ in parsed.tags if tag in ("b", "script", "link")]
    assert (
        parsed.links and all(link.startswith("data:image/") for link in parsed.links) and "url(" not in evidence.html()
    )
    words = [attrs for tag, attrs in parsed.tags if tag == "span"]
    assert len(words) == sum(kind == 2 for kind in evidence.query.sources.kinds)
    assert len([1 for tag, _ in parsed.tags if tag == "rect"]) == len({box[2:] for box in evidence.boxes()})
    assert "</b>" in parsed.text.replace(" ", "")
    assert evidence._repr_html_() == evidence.html()


@pytest.mark.compiles
def test_files_by_their_endings(evidence, tmp_path):
    for name in ("hit.png", "hit.html", "hit.svg", "hit.json"):
        evidence.save(tmp_path / name)
    with Image.open(tmp_path / "hit.png") as written:
        assert written.size == evidence.picture().size
    root = xml.etree.ElementTree.fromstring((tmp_path / "hit.svg").read_text())
    assert root.tag.endswith("svg") and any("image" in child.tag for child in root)
    numbers = json.loads((tmp_path / "hit.json").read_text())
    assert numbers["score"] == pytest.approx(numbers["pooled"] + sum(token["share"] for token in numbers["tokens"]))
    assert [token["boxes"] for token in numbers["tokens"]].count([]) == sum(
        not any(box.token == i for box in evidence.boxes()) for i in range(len(evidence.tokens))
    )
    assert (tmp_path / "hit.html").read_text().startswith("<!DOCTYPE html>")
    assert evidence._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"ends in none of \.png"):
        evidence.save(tmp_path / "hit.pdf")


def test_a_picture_is_changed_where_the_evidence_is():
    found = explain(query_of(5), pictures_document())
    for picture, changed in ((0, True), (1, False)):
        drawn = np.asarray(found.picture(picture, width=600))[-400:]
        inside = np.zeros((400, 600), bool)
        inside[170:, 195:405] = True  # and its label above
        differs = (drawn != 255).any(axis=2)
        assert differs[210:390, 210:390].all() == changed and not differs[~inside].any()
    assert found.picture().size == found.picture(0).size
    with pytest.raises(IndexError, match="picture 3 of a document with 3"):
        found.picture(3)


def test_texts_are_drawn_around_their_evidence(tmp_path):
    text = "\n".join(["nothing of note"] * 90 + ["grease & <oil>"])
    start = text.index("grease")
    sources = TokenSources(np.uint8([2, 2]), np.int32([[0, 0, 7], [0, start, start + 3]]))
    document = Traced(Embeddings(unit_rows(0), unit_rows(0, 1), [0, 2]), sources, (text,))
    found = explain(query_of(1), document)
    assert text[slice(*found.highlights()[0].span[1:])] == "grease"
    assert found.picture().height < 1000 and "grease" in found.svg() and found.svg().count("<text") < 40
    xml.etree.ElementTree.fromstring(found.svg())
    marks = [attrs for tag, attrs in Parsed(found.html()).tags if tag == "mark"]
    assert len(marks) == 1 and "grease &amp; &lt;oil&gt;".partition(" ")[2] in found.html()
    for name in ("a.png", "a.html", "a.svg"):
        found.save(tmp_path / name)


def test_lines_have_all_characters_of_a_text():
    text = "a much longer line, which is broken at its spaces\r\n\nand averyveryverylongword of its own"
    lines = text_lines(text, columns=12)
    assert all(stop - start <= 12 for start, stop in lines)
    assert "".join(text[start:stop] for start, stop in lines).replace(" ", "") == "".join(text.split())


def test_what_cannot_be_drawn():
    document = dataclasses.replace(pictures_document(), pictures=(), texts=())
    found = explain(query_of(5), document)
    assert len(found.boxes()) == 1 and "figure" in found.html()
    for draw in (found.picture, found.svg):
        with pytest.raises(ValueError, match="nothing to draw on"):
            draw()


# --- comparisons and checks


@pytest.mark.compiles
def test_why_one_document_is_above_another(bert):
    query = trace(bert, "grease of a pump", query=True)
    above, below = (explain(query, trace(bert, text)) for text in ("grease of the pump", "revenue in a year"))
    difference = above.above(below)
    assert difference.score == pytest.approx(above.score - below.score)
    assert difference.score == pytest.approx(difference.pooled + sum(token.share for token in difference.tokens))
    assert difference.pooled == pytest.approx(difference.rest + sum(token.pooled_share for token in difference.tokens))
    assert str(difference).count("\n") == 4 and Parsed(difference.html()).open == []
    sizes = [abs(token.share + token.pooled_share) for token in difference.strongest()]
    assert sizes == sorted(sizes, reverse=True) and json.dumps(difference.to_dict())
    with pytest.raises(ValueError, match="different queries"):
        above.above(explain(trace(bert, "oil of a pump", query=True), below.document))
    with pytest.raises(ValueError, match="the weights are"):
        above.above(explain(query, below.document, late_weight=2.0))


@pytest.mark.usefixtures("unchecked")
def test_checks():
    query, document = query_of(5, 10), pictures_document()
    with pytest.raises(ValueError, match="no model"):
        explain("oil", document)
    with pytest.raises(ValueError, match="3 usual cosines for 2 query tokens"):
        explain(query, document, others=np.zeros(3))
    with pytest.raises(ValueError, match="one not 0"):
        explain(query, document, pooled_weight=0, late_weight=0)
    narrow = dataclasses.replace(query, embeddings=Embeddings(unit_rows(0), unit_rows(1, 2, width=9), [0, 2]))
    with pytest.raises(ValueError, match=r"widths \(24, 9\)"):
        explain(narrow, document)
    with pytest.raises(ValueError, match="17 token vectors, but its sources name 2"):
        dataclasses.replace(document, sources=query.sources)
    with pytest.raises(ValueError, match="1 pictures for 3 frames"):
        dataclasses.replace(document, pictures=document.pictures[:1])
    with pytest.raises(TypeError, match=r"tokens are traced of a smart_jax\.Encoder"):
        trace(object(), "oil")
