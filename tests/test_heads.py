"""The published models' prompts letter by letter, their pooling and kept tokens, and how a checkpoint is recognised."""

from __future__ import annotations

import dataclasses
import json
import string
from functools import partial

import numpy as np
import pytest

import smart_jax
from smart_jax.inputs.image import smart_resize
from smart_jax.inputs.presets import PRESETS, open_settings
from smart_jax.inputs.settings import Settings
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.backbone import open_small, small_config, write_checkpoint
from tests.checkpoints import noise_page, write_processor

CONFIG = QwenVLConfig.from_hf(small_config())
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A processor whose chat template begins without a system turn where none is given."""
    return write_processor(tmp_path_factory.mktemp("processor") / "qwen")


@pytest.fixture(scope="module")
def opened(folder):
    """A head's preprocessor on a small checkpoint."""

    return partial(open_small, folder.parent)


def turns(*roles_and_contents):
    pairs = zip(roles_and_contents[::2], roles_and_contents[1::2], strict=True)
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in pairs) + "<|im_start|>assistant\n"


def gme(system, user):
    return turns("system", system, "user", user) + "<|endoftext|>"


def lamra(user):
    return turns("user", user, "assistant", "<emb>.")


def unite(user, seen):
    return gme(HELPFUL, f"{user}\nSummary above {seen} in one word:")


def eager(user):
    return f"<|im_start|>user\n{user}<|im_end|>\n<|endoftext|>"


def described(more="", answer=""):
    return f"<|im_start|>user\n{PICTURE}Describe the image.{more}<|im_end|>{answer}<|endoftext|>"


GEMMA_PICTURE = "<|image><|image|><image|>"
HELPFUL = "You are a helpful assistant."
PADDED = "<|endoftext|>" * 10
SENTENCE = "\nSummarize above sentence in one word: "
BOTH = "\nSummarize above image and sentence in one word: "
# (head, texts, images, instruction, query, prompt)
PROMPTS = [
    ("gme", ["oil"], 0, None, True, gme(HELPFUL, "oil")),
    ("gme", ["oil"], 0, "Find a page", True, gme("Find a page", "oil")),
    ("gme", ["oil"], 1, None, False, gme(HELPFUL, PICTURE + "oil")),
    ("gme", [], 1, None, False, gme(HELPFUL, PICTURE)),
    ("lamra", ["oil"], 0, "Find a page", True, lamra(f" Find a page.\noil{SENTENCE}")),
    ("lamra", ["oil"], 0, None, False, lamra(f"oil{SENTENCE}")),
    ("lamra", [], 1, None, False, lamra(f"{PICTURE}\nSummarize above image in one word: ")),
    ("lamra", ["oil", "gas"], 1, None, False, lamra(f"{PICTURE}oil gas{BOTH}")),
    ("lamra_qwen3_vl", ["oil"], 0, "Which?", True, lamra(f" Which?\noil{SENTENCE}")),
    ("lamra_qwen3_vl", [], 1, "Which?", False, lamra(f"{PICTURE}\nSummarize above image in one word: ")),
    ("vlm2vec", ["oil"], 0, None, False, "oil"),
    ("vlm2vec", ["oil"], 0, "Find a page:", True, "Find a page: oil"),
    ("vlm2vec", ["oil"], 2, "Represent", False, "<|image_pad|> <|image_pad|> Represent oil"),
    ("vlm2vec", [], 1, None, False, "<|image_pad|> Represent the given image."),
    ("jina_embeddings_v4", ["oil"], 0, None, True, "Query: oil"),
    ("jina_embeddings_v4", ["oil"], 0, None, False, "Passage: oil"),
    ("jina_embeddings_v4", [], 1, None, False, f"<|im_start|>user\n{PICTURE}Describe the image.<|im_end|>\n"),
    ("jina_embeddings_v4", [], 2, None, False, f"<|im_start|>user\n{PICTURE}{PICTURE}<|im_end|>\n"),
    ("ops_mm_embedding", ["oil"], 0, "Find a page", False, gme("Find a page", "oil")),
    ("ops_mm_embedding", ["oil"], 2, None, True, gme(HELPFUL, PICTURE + PICTURE + "oil")),
    ("rzen_embed", ["oil"], 0, "Find a page: ", True, gme(HELPFUL, "Find a page: oil")),
    ("rzen_embed", [], 1, "Represent the image.", False, gme(HELPFUL, f"{PICTURE}Represent the image.")),
    ("rzen_embed", ["oil"], 1, None, False, gme(HELPFUL, f"{PICTURE}oil")),
    ("unite", ["oil"], 0, None, True, unite("oil", "sentence")),
    ("unite", ["oil"], 1, None, False, unite(f"{PICTURE}oil", "sentence and image")),
    ("unite", [], 1, None, False, unite(PICTURE, "image")),
    ("gve", ["oil"], 0, "Find a page", True, gme("Find a page", "oil")),
    ("gve", [], 1, None, False, gme(HELPFUL, PICTURE)),
    ("moca", ["oil"], 0, None, True, "oil"),
    ("moca", [], 1, None, False, f"{PICTURE}Represent the given document image.\n"),
    ("moca", ["oil"], 1, None, False, f"{PICTURE}Represent the given image with the following question: oil\n"),
    ("nomic_embed_multimodal", ["oil"], 0, None, True, "Query: oil<|endoftext|>"),
    (
        "nomic_embed_multimodal",
        [],
        1,
        None,
        False,
        f"<|im_start|>user\n{PICTURE}Describe the image.<|im_end|><|endoftext|>",
    ),
    ("eager_embed", ["oil"], 0, None, True, eager("Query: oil")),
    ("eager_embed", ["oil"], 1, None, False, eager(f"oil{PICTURE}")),
    ("eager_embed", [], 1, None, False, eager(PICTURE)),
    ("colqwen2", ["oil"], 0, None, True, f"Query: oil{PADDED}"),
    ("colqwen2", ["oil"], 0, None, False, f"Query: oil{PADDED}"),
    ("colqwen2", [], 1, None, False, described()),
    ("ops_colqwen3", ["oil"], 0, None, True, f"Query: oil{PADDED}"),
    ("ops_colqwen3", [], 1, None, False, described(answer="<|im_start|>assistant\n")),
    ("tomoro_colqwen3", ["oil"], 0, None, True, f"oil{PADDED}"),
    ("tomoro_colqwen3", ["oil"], 1, None, False, described(" oil")),
    ("colqwen3", ["oil"], 0, None, True, f"oil{PADDED}"),
    ("colqwen3", [], 1, None, False, described()),
    ("colqwen3_5", ["oil"], 0, None, True, f"oil{PADDED}"),
    ("colqwen3_5", [], 1, None, False, described()),
    ("evie", ["oil"], 0, None, True, f"oil{PADDED}"),
    ("evie", [], 1, None, False, described()),
    ("pplx_embed_v2_late", ["oil"], 0, None, True, "[Q] oil"),
    ("pplx_embed_v2_late", ["oil"], 0, None, False, "[D] oil"),
    ("pplx_embed_v2_late", ["oil"], 1, None, False, f"[D] {PICTURE}oil"),
    ("nemotron_colembed", ["oil"], 0, None, True, turns("user", "Query: query: oil")),
    ("nemotron_colembed", [], 1, None, False, turns("user", f"{PICTURE}passage: ")),
    ("nemotron_colembed", ["oil"], 1, None, False, turns("user", f"{PICTURE}passage: oil")),
    ("embedding_gemma2", ["oil"], 0, None, True, "task: search result | query: oil"),
    ("embedding_gemma2", ["oil", "gas"], 0, "STS", True, "task: sentence similarity | query: oil gas"),
    ("embedding_gemma2", ["oil"], 0, "fact checking", True, "task: fact checking | query: oil"),
    ("embedding_gemma2", ["oil"], 0, "CodeRetrieval", True, "task: code retrieval | query: oil"),
    ("embedding_gemma2", ["oil"], 0, "Find a page", True, "task: Find a page | query: oil"),
    ("embedding_gemma2", [], 1, None, True, f"{GEMMA_PICTURE}task: search result | query: "),
    ("embedding_gemma2", ["oil"], 0, None, False, "title: none | text: oil"),
    ("embedding_gemma2", ["title: Oil | text: oil"], 0, None, False, "title: Oil | text: oil"),
    ("embedding_gemma2", ["title: oil"], 0, None, False, "title: none | text: title: oil"),
    ("embedding_gemma2", [], 2, None, False, f"{GEMMA_PICTURE}{GEMMA_PICTURE}title: none | text: "),
    ("embedding_gemma2", ["oil"], 1, None, False, f"{GEMMA_PICTURE}title: none | text: oil"),
    ("qwen3_vl_embedding", [], 0, None, False, turns("system", "Represent the user's input.", "user", "NULL")),
]


@pytest.mark.parametrize(("head", "texts", "images", "instruction", "query", "prompt"), PROMPTS)
def test_prompt(opened, head, texts, images, instruction, query, prompt):
    assert opened(head).prompt(texts, images, instruction=instruction, query=query) == prompt


def test_every_head_has_a_prompt_here():
    assert {row[0] for row in PROMPTS} == set(PRESETS)


def test_the_text_is_never_a_template(opened):
    assert opened("gme").prompt(["{{ query }}{% raise %}"], query=True) == gme(HELPFUL, "{{ query }}{% raise %}")


# ---- pooling, kept tokens, positions


def pooled(row):
    return np.flatnonzero(row.pool).tolist()


POOLED_OTHERWISE = {"lamra", "lamra_qwen3_vl", "jina_embeddings_v4", "moca", "embedding_gemma2"}


@pytest.mark.parametrize("head", sorted(set(PRESETS) - POOLED_OTHERWISE))
def test_last_token(opened, head):
    assert opened(head).tokenize({"text": "oil", "image": noise_page(64, 64)}).pool is None


def test_state_before_the_added_token(opened):
    preprocessor = opened("lamra")
    added = preprocessor.tokenizer.convert_tokens_to_ids("<emb>")
    assert added == len(preprocessor.tokenizer) - 1 < CONFIG.text.vocab_size
    row = preprocessor.tokenize("oil")
    [at] = pooled(row)
    assert row.input_ids[at + 1] == added and at < len(row.input_ids) - 5
    assert preprocessor.tokenizer.decode(row.input_ids[: at + 1]).endswith("<|im_start|>assistant\n")
    assert row.keep[at + 1] and row.keep[at + 2]  # neither "<emb>" nor "." is a special token


def test_mean_over_the_picture_or_all_tokens(opened):
    preprocessor = opened("jina_embeddings_v4", min_pixels=4096, max_pixels=65536)
    text = preprocessor.tokenize("oil")
    assert text.pool.all() and text.keep.all()
    page = preprocessor.tokenize(noise_page(96, 64))
    ids = page.input_ids.tolist()
    assert pooled(page) == list(range(ids.index(3), ids.index(4) + 1)) and len(pooled(page)) == 2 + 6
    assert page.keep.all() and not page.pool.all()
    two = preprocessor.tokenize({"images": [noise_page(64, 64)] * 2})
    marks = np.flatnonzero(np.isin(two.input_ids, [3, 4]))
    assert len(marks) == 4 and pooled(two) == list(range(marks[0], marks[3] + 1))


def test_mean_over_all_tokens(opened):
    for item in ("oil", noise_page(96, 64), {"text": "oil", "image": noise_page(64, 64)}):
        row = opened("moca").tokenize(item)
        assert row.pool.all() and row.keep.sum() == len(row.input_ids) - 2 * (item != "oil")  # the marks


def test_embedding_gemma_pools_all_and_keeps_words_and_soft_tokens(opened):
    preprocessor = opened("embedding_gemma2", soft_tokens=70)
    row = preprocessor.tokenize({"text": "oil", "image": noise_page(96, 64)})
    ids, (bos, eos, begin, soft, end) = row.input_ids.tolist(), (2, 1, 5, 6, 7)
    assert ids[:2] == [bos, begin] and ids[-1] == eos and row.pool.all()
    [(frames, rows, columns)] = row.grids
    assert frames == 1 and ids.count(soft) == rows * columns // 9 and 60 <= ids.count(soft) <= 70
    words = preprocessor.tokenizer("title: none | text: oil", add_special_tokens=False)["input_ids"]
    assert ids[ids.index(end) + 1 : -1] == words
    np.testing.assert_array_equal(row.keep, ~np.isin(ids, [bos, eos, begin, end]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_pixels": 65536},
            "scaled to a number of visual tokens: set soft_tokens to one of 70, 140",
        ),
        ({"soft_tokens": 100}, "soft_tokens is 100, expected one of 70"),
    ],
)
def test_what_bounds_an_image_of_embedding_gemma(opened, settings, message):
    with pytest.raises(ValueError, match=message):
        opened("embedding_gemma2", **settings)
    with pytest.raises(ValueError, match="soft_tokens is 70, but a qwen3_vl bounds the pixels of an image"):
        opened("qwen3_vl_embedding", soft_tokens=70)


@pytest.mark.parametrize("soft_tokens", [70, 1120])
def test_images_of_about_one_size_take_few_shapes(opened, soft_tokens):
    """Pages, photographs and banners all fill the budget; only strips have much less."""
    preprocessor = opened("embedding_gemma2", soft_tokens=soft_tokens)
    sizes = {preprocessor.measure(noise_page(*size)) for size in [(850, 1100), (640, 480), (300, 900), (77, 85)]}
    assert {preprocessor.padded_sizes(*size)[1] for size in sizes} == {soft_tokens * 9}
    strip = preprocessor.measure(noise_page(900, 8))
    assert preprocessor.padded_sizes(*strip)[1] in (soft_tokens * 9 // 2 // 9 * 9 + 9, soft_tokens * 9)


def test_queries_of_gme_keep_no_visual_tokens(opened):
    preprocessor, item = opened("gme"), {"text": "oil", "image": noise_page(64, 64)}
    query, document = preprocessor.tokenize(item, query=True), preprocessor.tokenize(item)
    assert query.input_ids.tolist() == document.input_ids.tolist()
    visual = document.input_ids == CONFIG.image_token_id
    assert visual.sum() >= 4 and document.keep[visual].all() and not query.keep[visual].any()
    np.testing.assert_array_equal(query.keep[~visual], document.keep[~visual])
    for head in ("qwen3_vl_embedding", "lamra", "vlm2vec"):
        row = opened(head).tokenize(item, query=True)
        assert row.keep[row.input_ids == CONFIG.image_token_id].all()


SEQUENTIAL = {"gme", "lamra", "lamra_qwen3_vl", "vlm2vec", "rzen_embed", "unite", "embedding_gemma2"}


@pytest.mark.parametrize("head", sorted(PRESETS))
def test_positions(opened, head):
    small = {} if head == "embedding_gemma2" else {"min_pixels": 4096, "max_pixels": 65536}
    preprocessor = opened(head, **small)
    row = preprocessor.tokenize({"text": "oil", "image": noise_page(96, 64)})
    positions = preprocessor.collate([row]).position_ids[:, 0, : len(row.input_ids)]
    in_a_line = np.broadcast_to(np.arange(len(row.input_ids)), positions.shape)
    assert np.array_equal(positions, in_a_line) == (head in SEQUENTIAL)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_padded_rows_pool_the_same_states(opened, padding_side):
    preprocessor = opened("lamra")
    rows = [preprocessor.tokenize(text) for text in ("oil", "revenue by region in the report")]
    batch = preprocessor.collate(rows, batch_size=4, padding_side=padding_side)
    assert batch.pool_mask.sum(axis=1).tolist() == [1, 1, 1, 1] and not (batch.pool_mask & ~batch.attention_mask).any()
    for row, ids, mask in zip(rows, batch.input_ids, batch.pool_mask, strict=False):
        assert ids[np.argmax(mask) + 1] == row.input_ids[row.pool.argmax() + 1]


def test_too_long_texts_keep_the_prompt_s_end(opened):
    preprocessor = opened("lamra", max_length=64)
    row = preprocessor.tokenize("revenue by region 12,345 " * 40)
    assert 60 <= len(row.input_ids) <= 64
    words = preprocessor.tokenizer.decode(row.input_ids)
    assert words.startswith("<|im_start|>user\nrevenue by region")
    assert words.endswith(lamra(SENTENCE).removeprefix("<|im_start|>user\n"))
    with pytest.raises(ValueError, match="item 2: the prompt and its .* visual tokens do not fit in max_length 64"):
        preprocessor.tokenize({"text": "oil", "image": noise_page(640, 640)}, name="item 2")


def test_first_resize(opened):
    """GME resizes to whole visual tokens within wide bounds, and what comes out once more."""
    images = opened("gme").images
    bounds = {"factor": images.factor, "min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
    first, last = images.first_pixels
    differ = 0
    for width in range(1000, 1400, 7):
        height = 1_100
        once = smart_resize(height, width, **bounds)
        twice = smart_resize(
            *smart_resize(height, width, factor=images.factor, min_pixels=first, max_pixels=last), **bounds
        )
        differ += once != twice
        if once != twice:
            grid = opened("gme").tokenize(noise_page(width, height)).grids[0]
            assert (grid[1] * images.patch_size, grid[2] * images.patch_size) == twice
            break
    assert differ


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_gme_takes_the_middle_frame(opened, frames):
    preprocessor = opened("gme")
    film = [noise_page(280, 196, seed=i) for i in range(frames)]
    row, image = (
        preprocessor.tokenize({"video": film, "text": "oil"}),
        preprocessor.tokenize({"image": film[frames // 2], "text": "oil"}),
    )
    assert row.input_ids.tolist() == image.input_ids.tolist() and row.grids == image.grids
    np.testing.assert_array_equal(row.patches, image.patches)


@pytest.mark.parametrize(
    ("head", "marks"),
    [("lamra", 1), ("vlm2vec", 0), ("unite", 1), ("gve", 1), ("lamra_qwen3_vl", 2), ("qwen3_vl_embedding", 2)],
)
def test_videos_have_the_marks_of_their_prompt(opened, head, marks):
    """Each temporal patch has its own with Qwen3-VL, the video has one pair with Qwen2-VL, and VLM2Vec writes none."""
    row = opened(head).tokenize({"video": [noise_page(280, 196, seed=i) for i in range(4)], "fps": 1})
    ids = row.input_ids.tolist()
    assert ids.count(CONFIG.vision_start_token_id) == ids.count(CONFIG.vision_end_token_id) == marks
    merged = sum(t * h * w for t, h, w in row.grids) // 4
    assert ids.count(CONFIG.video_token_id) == merged > 0 and row.keep[row.input_ids == CONFIG.video_token_id].all()
    words = opened(head).tokenizer.decode(row.input_ids)
    if head.startswith("lamra"):
        assert "\nSummarize above video in one word: " in words
    if head == "vlm2vec":
        assert words.endswith(" Represent the given video.")
    if head == "unite":
        assert words.endswith(turns("user", "\nSummary above video in one word:").split("\n", 1)[1] + "<|endoftext|>")


@pytest.mark.parametrize(
    ("head", "frames", "bounds"), [("unite", 32, (100_352, 151_200)), ("gve", 8, (100_352, 156_800))]
)
def test_frames_of_videos(opened, head, frames, bounds):
    videos = opened(head).settings.videos
    assert (videos.fps, videos.max_frames, videos.min_pixels, videos.max_pixels) == (1.0, frames, *bounds)
    assert videos.frame_pixels(frames, 2) == bounds[1]  # the bound of the whole video does not lower it


@pytest.mark.parametrize("head", ["ops_mm_embedding", "rzen_embed", "moca", "nomic_embed_multimodal", "eager_embed"])
def test_videos_that_are_passed_as_images(opened, head):
    with pytest.raises(ValueError, match=rf"this model \({head}\) does not take: pass some frames as images"):
        opened(head).tokenize({"video": [noise_page(64, 64)] * 2})


def test_pixel_bounds(folder, opened):
    assert (opened("gme").images.min_pixels, opened("gme").images.max_pixels) == (200_704, 1_003_520)
    assert (opened("lamra_qwen3_vl").images.min_pixels, opened("lamra_qwen3_vl").images.max_pixels) == (4096, 802_816)
    assert (opened("vlm2vec").images.min_pixels, opened("vlm2vec").images.max_pixels) == (3136, 1_003_520)
    own = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    for head in ("jina_embeddings_v4", "gve", "eager_embed"):
        images = opened(head).images
        assert (images.min_pixels, images.max_pixels) == (own["shortest_edge"], own["longest_edge"])
    for head in ("ops_mm_embedding", "rzen_embed", "unite"):
        assert (opened(head).images.min_pixels, opened(head).images.max_pixels) == (200_704, 1_003_520)
    nomic = opened("nomic_embed_multimodal").images
    assert (nomic.min_pixels, nomic.max_pixels) == (3136, 602_112)
    assert (opened("moca").images.min_pixels, opened("moca").images.max_pixels) == (200_704, 802_816)
    assert opened("rzen_embed").images.first_pixels == opened("gme").images.first_pixels == (3136, 12_845_056)


def test_sizes_of_the_models_on_qwen3_5(folder, opened):
    own = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    found = {head: opened(head).images for head in ("colqwen3_5", "evie", "pplx_embed_v2_late")}
    assert {head: (images.min_pixels, images.max_pixels) for head, images in found.items()} == {
        "colqwen3_5": (own["shortest_edge"], own["longest_edge"]),
        "evie": (own["shortest_edge"], 1_048_576),
        "pplx_embed_v2_late": (3136, 1_800_964),
    }
    assert len(opened("evie").tokenize(noise_page(2000, 3000)).patches) <= 4 * 1024
    preprocessor, text = opened("pplx_embed_v2_late"), "revenue by region " * 2000
    assert [len(preprocessor.tokenize(text, query=query)) for query in (True, False)] == [1024, 4096]


def test_documents_of_pplx_drop_punctuation(opened):
    """Each of the 32 ASCII signs that is a token of its own, and no run of them that is another token."""
    preprocessor, text = opened("pplx_embed_v2_late"), "profit, loss: (12.5 %) ... a_b?!"
    query, document = (preprocessor.tokenize(text, query=query) for query in (True, False))
    dropped = [word in string.punctuation for word in map(preprocessor.tokenizer.decode, document.input_ids)]
    assert query.keep.all() and sum(dropped) > 4
    assert document.keep.tolist() == [not each for each in dropped]


def test_every_page_of_eager_embed_is_a_square(opened):
    """qwen-vl-utils makes it 784 x 784, and the image processor what is divisible by 32."""
    page, twice = noise_page(300, 500), noise_page(300, 500).resize((784, 784)).resize((768, 768))
    ours = opened("eager_embed").tokenize(page)
    assert ours.grids == ((1, 48, 48),)
    np.testing.assert_array_equal(ours.patches, opened("eager_embed", first_size=None).tokenize(twice).patches)


# ---- instructions


@pytest.mark.parametrize(
    ("head", "query", "message"),
    [
        ("gme", False, r"item 1 has an instruction, which this model \(gme\) takes for queries only: leave it out"),
        ("jina_embeddings_v4", True, r"which this model \(jina_embeddings_v4\) takes for no item"),
        ("gve", False, r"which this model \(gve\) takes for queries only"),
        ("unite", True, r"which this model \(unite\) takes for no item"),
    ],
)
def test_instructions_that_a_model_does_not_take(opened, head, query, message):
    preprocessor = opened(head)
    with pytest.raises(ValueError, match=message):
        preprocessor.tokenize("oil", instruction="Find it", query=query, name="item 1")
    with pytest.raises(ValueError, match=message):
        preprocessor.tokenize({"text": "oil", "instruction": "Find it"}, query=query, name="item 1")
    preprocessor.tokenize("oil", instruction="", query=query)


def test_the_prompt_s_own_token_in_a_text(opened):
    with pytest.raises(ValueError, match="item 1: the text contains the prompt's own token <emb>: remove it"):
        opened("lamra").tokenize("a <emb> b", name="item 1")


# ---- recognition

BY_NAME = [
    ("qwen2_vl", "gme-Qwen2-VL-2B-Instruct", "gme"),
    ("qwen2_vl", "models--Alibaba-NLP--gme-Qwen2-VL-7B-Instruct/snapshots/0123abcd", "gme"),
    ("qwen2_vl", "LamRA-Ret", "lamra"),
    ("qwen2_5_vl", "LamRA-Ret-Qwen2.5VL-7b", "lamra"),
    ("qwen3_vl", "lamra-qwen3-2b", "lamra_qwen3_vl"),
    ("qwen2_vl", "models--VLM2Vec--VLM2Vec-V2.0/snapshots/01", "vlm2vec"),
    ("qwen2_5_vl", "jina-embeddings-v4", "jina_embeddings_v4"),
    ("qwen3_vl", "Qwen3-VL-Embedding-2B", "qwen3_vl_embedding"),
    ("qwen3_vl", "anything", "qwen3_vl_embedding"),
    ("embedding_gemma2", "embeddinggemma-2", "embedding_gemma2"),
    ("embedding_gemma2", "anything", "embedding_gemma2"),
    ("qwen3_vl", "models--dnotitia--DNA-VL-STEER-2B/snapshots/01", "qwen3_vl_embedding"),
    ("qwen2_vl", "models--OpenSearch-AI--Ops-MM-embedding-v1-7B/snapshots/01", "ops_mm_embedding"),
    ("qwen2_vl", "RzenEmbed", "rzen_embed"),
    ("qwen2_vl", "Unite-Base-Qwen2-VL-2B", "unite"),
    ("qwen2_vl", "models--friedrichor--Unite-Instruct-Qwen2-VL-7B/snapshots/01", "unite"),
    ("qwen2_5_vl", "models--Alibaba-NLP--GVE-3B/snapshots/01", "gve"),
    ("qwen2_5_vl", "models--moca-embed--MoCa-Qwen25VL-3B/snapshots/01", "moca"),
    ("qwen2_5_vl", "nomic-embed-multimodal-3b", "nomic_embed_multimodal"),
    ("qwen3_vl", "eager-embed-v1", "eager_embed"),
    ("qwen2_vl", "models--vidore--colqwen2-v1.0/snapshots/01", "colqwen2"),
    ("qwen2_5_vl", "models--vidore--colqwen2.5-v0.2/snapshots/01", "colqwen2"),
    ("qwen2_5_vl", "colnomic-embed-multimodal-7b", "colqwen2"),
    ("qwen2_5_vl", "EvoQwen2.5-VL-Retriever-3B-v1", "colqwen2"),
    ("qwen3_vl", "models--OpenSearch-AI--Ops-Colqwen3-4B/snapshots/01", "ops_colqwen3"),
    ("qwen3_vl", "tomoro-colqwen3-embed-8b", "tomoro_colqwen3"),
    ("qwen3_vl", "models--VAGOsolutions--SauerkrautLM-ColQwen3-2b-v0.1/snapshots/01", "colqwen3"),
    ("qwen3_vl", "ColTurk-VDR-Qwen3VL-4B-v1.0", "colqwen3"),
    ("qwen3_vl", "models--nvidia--nemotron-colembed-vl-4b-v2/snapshots/01", "nemotron_colembed"),
    ("qwen3_5", "models--athrael-soju--colqwen3.5-4.5B-v3/snapshots/01", "colqwen3_5"),
    ("qwen3_5", "VultronRetrieverPrime-Qwen3.5-8B", "colqwen3_5"),
    ("qwen3_5", "models--tencent--EVIE-4.5B/snapshots/01", "evie"),
    ("qwen3_5", "EVIE-8B", "evie"),
    ("qwen3_5", "models--perplexity-ai--pplx-embed-v2-late-9b/snapshots/01", "pplx_embed_v2_late"),
]


@pytest.mark.parametrize(("model_type", "path", "head"), BY_NAME)
def test_known_by_name(tmp_path, model_type, path, head):
    (tmp_path / path).mkdir(parents=True)
    assert open_settings(tmp_path / path, model_type) == PRESETS[head].settings


@pytest.mark.parametrize(
    ("model_type", "found", "head"),
    [
        ("qwen2_5_vl", {"architectures": ["JinaEmbeddingsV4Model"]}, "jina_embeddings_v4"),
        ("qwen2_vl", {"architectures": ["GmeQwen2VL"]}, "gme"),
        ("qwen2_vl", {"architectures": ["ColQwen2"]}, "colqwen2"),
        ("qwen2_5_vl", {"model_type": "colqwen2", "architectures": ["ColQwen2ForRetrieval"]}, "colqwen2"),
        ("qwen3_vl", {"architectures": ["OpsColQwen3Model"]}, "ops_colqwen3"),
        ("qwen3_vl", {"architectures": ["ColQwen3"]}, "colqwen3"),
        ("qwen3_vl", {"architectures": ["ColQwen3"], "embed_dim": 320}, "tomoro_colqwen3"),
        ("qwen3_vl", {"architectures": ["Qwen3VLNemotronEmbedModel"]}, "nemotron_colembed"),
        ("qwen3_5", {"architectures": ["ColQwen3_5"]}, "colqwen3_5"),
        ("qwen3_5", {"architectures": ["ColQwen3_5"], "_name_or_path": "tencent/EVIE-8B"}, "evie"),
        ("qwen3_vl", {"emb_token_ids": [151669]}, "lamra_qwen3_vl"),
        ("qwen2_vl", {"_name_or_path": "code-kunkun/LamRA-Ret"}, "lamra"),
        ("qwen2_vl", {"model_type": "unite_qwen2_vl", "architectures": ["UniteQwen2VL"]}, "unite"),
        ("qwen2_5_vl", {"architectures": ["JinaEmbeddingsV4Model"], "_name_or_path": "x/LamRA"}, "jina_embeddings_v4"),
    ],
)
def test_known_by_config(tmp_path, model_type, found, head):
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert open_settings(tmp_path, model_type).head == head


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_unknown_heads_say_how_to_pass_one(tmp_path, model_type):
    with pytest.raises(
        ValueError, match=rf"is a {model_type}, but nothing says.*head=.*lamra.*pooling='last', prompt='"
    ):
        open_settings(tmp_path, model_type)
    with pytest.raises(ValueError, match="head is 'gem', expected one of qwen3_vl_embedding, .*gme, "):
        open_settings(tmp_path, model_type, head="gem")
    with pytest.raises(ValueError, match="nothing says"):
        open_settings(tmp_path, model_type, pooling="mean")
    own = open_settings(tmp_path, model_type, pooling="mean", prompt="{{ visual }}{{ texts | join }}")
    assert own == Settings(head="custom", pooling="mean", prompt="{{ visual }}{{ texts | join }}")
    (tmp_path / "smart_jax.json").write_text(json.dumps({"head": "lamra", "max_length": 77}))
    assert open_settings(tmp_path, model_type) == dataclasses.replace(PRESETS["lamra"].settings, max_length=77)
    assert open_settings(tmp_path, model_type, head="vlm2vec").head == "vlm2vec"


BAD = [
    ({"pooling": "first"}, "pooling is 'first', expected 'last', 'mean', 'mean_all', 'none', 'before:TOKEN'"),
    ({"pooling": "before:"}, "pooling is 'before:', expected"),
    ({"pooling": "before:<emb>"}, "does not hold '<emb>' once"),
    ({"document_skips": ".,"}, r"document_skips is '\.,', expected a list of tokens"),
    ({"query_length": 0}, "query_length is 0, expected a positive integer"),
    ({"keep": "some"}, "keep is 'some', expected 'words' or 'all'"),
    ({"positions": "3d"}, "positions is '3d', expected 'mrope' or 'sequential'"),
    ({"deepstack": 3}, "deepstack is 3, expected True or False"),
    ({"video": "yes"}, "video is 'yes', expected 'frames' or"),
    ({"instructions": None}, "instructions is None, expected 'all' or"),
    ({"prompt": ""}, "prompt is '', expected a Jinja template or turns"),
    ({"prompt": [["user"]]}, r"prompt is \[\['user'\]\], expected a Jinja template or turns"),
    ({"prompt": "{% if %}"}, "the prompt is not a Jinja template"),
    ({"prompt": "{{ text }}"}, "cannot be rendered.*'text' is undefined"),
    ({"prompt": "{{ texts | join }}"}, "does not write the backbone's image token"),
    (
        {"prompt": "{{ image * images }}{{ video * videos }}{{ texts | join }}"},
        "the prompt writes images before videos",
    ),
    ({"first_pixels": 3}, "first_pixels is 3, expected a list of positive integers"),
    ({"first_size": [784]}, r"first_size is \(784,\), expected two positive integers"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings(opened, settings, message):
    with pytest.raises(ValueError, match=message):
        opened("qwen3_vl_embedding", **settings)


# ---- through load


@pytest.mark.compiles
def test_load_with_a_rule_of_one_s_own(tmp_path):
    folder = write_checkpoint(tmp_path)
    rule = {"prompt": [["user", "{{ visual }}", "{{ texts | join }}"]], "pooling": "mean"}
    model = smart_jax.load(folder, **rule, settings={"keep": "all", "query_instruction": "Find"})
    assert model.preprocessor.prompt(["oil"]) == turns("user", "oil")
    (folder / "smart_jax.json").write_text(json.dumps(rule | {"keep": "all"}))
    items = ["oil", noise_page(64, 96)]
    ours, file = model.encode_document(items), smart_jax.load(folder).encode_document(items)
    np.testing.assert_array_equal(ours.tokens, file.tokens)
    mean = ours[0].tokens.mean(0)
    other = smart_jax.load(folder, pooling="last").encode_document(items)
    np.testing.assert_allclose(other.pooled[0], other[0].tokens[-1], atol=2e-5)
    np.testing.assert_array_equal(other.tokens, ours.tokens)
    assert np.abs(mean / np.linalg.norm(mean) - ours.pooled[0]).max() < 0.2 < np.abs(ours.pooled - other.pooled).max()


@pytest.mark.compiles
def test_the_paper_s_lamra_leaves_deepstack_out(checkpoint):
    folder, page = checkpoint, [noise_page(96, 96)]
    paper = smart_jax.load(folder, head="lamra_qwen3_vl")
    assert not paper.config.use_deepstack and smart_jax.load(folder).config.use_deepstack
    with_it = smart_jax.load(folder, head="lamra_qwen3_vl", settings={"deepstack": True})
    assert np.abs(paper.encode_document(page).pooled - with_it.encode_document(page).pooled).max() > 1e-3
    text = ["oil"]
    np.testing.assert_array_equal(paper.encode_document(text).pooled, with_it.encode_document(text).pooled)
