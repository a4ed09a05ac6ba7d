"""Origins of tokens: characters of texts under every prompt, cells of pictures of any size, frames by time."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image

import smart_jax
from smart_jax.evidence import TokenSources
from smart_jax.inputs.origins import text_places
from smart_jax.inputs.presets import PRESETS
from smart_jax.inputs.text import TextPreprocessor
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.backbone import open_small, small_config
from tests.checkpoints import noise_page
from tests.small_bert import write_sentence_transformer

CONFIG = QwenVLConfig.from_hf(small_config())
# Words of the templates, blanks at the ends, characters of several bytes and of several code points.
TEXTS = [
    "user",
    "  system\nassistant: the user's input. ",
    "Zoë’s naïve 😀 cafe\u0301 – 12,345",
    "Query: Query: \t oil",
]
SMALL = {"min_pixels": 2048, "max_pixels": 65536, "first_pixels": None}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")

    def open_head(name, **settings):
        small = {"soft_tokens": 70} if name == "embedding_gemma2" else SMALL
        return open_small(folder, name, **small, **settings)

    return open_head


def check(preprocessor, item, texts, **how):
    """Spans are the tokens' own characters, and together all of the texts'."""
    origins = preprocessor.origins(item, **how)
    row = preprocessor.outline(item, **how)
    assert np.array_equal(origins.tokens.input_ids, row.input_ids) and np.array_equal(origins.tokens.keep, row.keep)
    assert len(origins.pieces) == len(origins.spans) == len(row)
    covered = [set() for _ in texts]
    for piece, (text, start, stop) in zip(origins.pieces, origins.spans.tolist(), strict=True):
        if text >= 0:
            assert texts[text][start:stop].strip() in piece and 0 <= start < stop <= len(texts[text])
            covered[text] |= set(range(start, stop))
    for text, characters in zip(texts, covered, strict=True):
        # An accent that the tokenizer's normaliser joins with its letter has no place of its own.
        assert {i for i, c in enumerate(text) if not c.isspace() and not unicodedata.combining(c)} <= characters
    return origins


@pytest.mark.parametrize("head", sorted(PRESETS))
@pytest.mark.parametrize("query", [False, True])
def test_spans_of_texts_under_every_prompt(opened, head, query):
    preprocessor = opened(head)
    for texts in (TEXTS[:1], TEXTS[1:2], TEXTS):
        check(preprocessor, {"text": texts}, texts, query=query)
    check(preprocessor, {"text": TEXTS[2], "image": noise_page(64, 64)}, [TEXTS[2]], query=query)


def test_the_prompt_s_own_words_have_no_span(opened):
    preprocessor = opened("qwen3_vl_embedding")
    origins = preprocessor.origins("user", instruction="user", query=True)
    said, before = (
        "".join(origins.pieces),
        "".join(piece for piece, span in zip(origins.pieces, origins.spans, strict=True) if span[0] < 0),
    )
    assert said.count("user") == 3 and before.count("user") == 2
    assert said.index("<|im_end|>\n<|im_start|>assistant") == len("".join(origins.pieces[: _last_of_text(origins)]))


def _last_of_text(origins):
    return int(np.flatnonzero(origins.spans[:, 0] >= 0)[-1]) + 1


def test_a_text_that_is_cut(opened):
    for head in ("qwen3_vl_embedding", "lamra"):
        words = [f"word{i}" for i in range(60)]
        preprocessor = opened(head, max_length=64)
        spans = [span for span in preprocessor.origins({"text": words}).spans.tolist() if span[0] >= 0]
        said = "".join(words[text][start:stop] for text, start, stop in spans)
        assert len(said) > 10 and "".join(words).startswith(said)


def test_frames_are_the_grids_of_the_visual_tokens(opened):
    preprocessor = opened("qwen3_vl_embedding")
    pictures = [noise_page(128, 64), noise_page(64, 200, seed=1), noise_page(500, 500, seed=2)]
    origins = check(preprocessor, {"images": pictures, "text": "oil"}, ["oil"])
    assert [(f.medium, f.number, f.rows, f.columns) for f in origins.frames] == [
        ("image", 0, 2, 4),
        ("image", 1, 6, 2),
        ("image", 2, 8, 8),
    ]
    visual = np.isin(origins.tokens.input_ids, preprocessor.visual_ids)
    assert visual.sum() == sum(f.rows * f.columns for f in origins.frames)
    assert preprocessor.frame_picture({"images": pictures}, origins.frames[1]).size == (64, 200)


@pytest.mark.parametrize(("head", "steps"), [("qwen3_vl_embedding", 3), ("vlm2vec", 3), ("gme", None)])
def test_frames_of_videos(opened, head, steps):
    preprocessor = opened(head, video_min_pixels=2048)
    film = [Image.new("RGB", (96, 64), (40 * i,) * 3) for i in range(6)]
    item = {"video": film, "image": noise_page(64, 64), "text": "oil", "fps": 2}
    origins = check(preprocessor, item, ["oil"])
    visual = np.isin(origins.tokens.input_ids, preprocessor.visual_ids)
    assert visual.sum() == sum(f.rows * f.columns for f in origins.frames)
    assert origins.frames[-1][:2] == ("image", 0)
    shown = [preprocessor.frame_picture(item, f).getpixel((0, 0))[0] for f in origins.frames[:-1]]
    if steps is None:  # its middle frame, as an image
        assert [f[:2] for f in origins.frames] == [("video", 0), ("image", 0)] and shown == [120]
    else:
        assert [(f.step, f.seconds) for f in origins.frames[:-1]] == [(0, 0.25), (1, 1.25), (2, 2.25)]
        assert shown == [0, 80, 160]


def test_spans_of_a_bert(tmp_path):
    preprocessor = smart_jax.load(write_sentence_transformer(tmp_path)).preprocessor
    texts = ["Revenue by  region", "pump:", "zebra"]  # the last is unknown to it
    origins = check(preprocessor, {"text": texts, "instruction": "find a pump: "}, texts)
    assert origins.pieces[0] == "[CLS]" and origins.spans[origins.pieces.index("find"), 0] == -1
    with pytest.raises(ValueError, match="no image to show"):
        preprocessor.frame_picture("oil", smart_jax.inputs.Frame("image", 0, 1, 1))


def test_a_text_in_windows_has_all_of_its_tokens(tmp_path):
    preprocessor = smart_jax.load(write_sentence_transformer(tmp_path)).preprocessor
    text = "oil of a pump, " * 20
    whole = TokenSources.of_whole_text(preprocessor, text, instruction="find ")
    cut = TokenSources.of(preprocessor, text, instruction="find ")
    assert len(cut) == 22 and len(whole) == 1 + 20 * 5 and whole.pieces == ("find",)
    assert [whole.place(i) for i in range(22)] == [cut.place(i) for i in range(22)]
    assert text[slice(*whole.place(96 + 3)[1:])] == "pump"


def test_spans_of_letters_that_grow_in_lower_case(tmp_path):
    preprocessor = smart_jax.load(write_sentence_transformer(tmp_path)).preprocessor
    lowered = TextPreprocessor(preprocessor.tokenizer, preprocessor.config, preprocessor.settings, lower_case=True)
    text = "İİİ oil"
    assert check(lowered, text, [text]).spans[-2].tolist() == [0, 4, 7]


def test_places_where_a_template_does_not_write_each_text_once():
    assert text_places("oil oil", "\ue000 \ue000", ["oil"]) == []
    assert text_places("nothing of it", "\ue000", ["oil"]) == []
    assert text_places("a: oil\n", "a: \ue000\n", ["  oil "]) == [(0, 3, 6)]
