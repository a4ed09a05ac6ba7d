"""Token ids, keep masks, batches and buckets against transformers and plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from smart_jax.files import Checkpoint
from smart_jax.inputs import open_preprocessor
from smart_jax.inputs.image import smart_resize
from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import load_config
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.backbone import small_config, write_checkpoint
from tests.checkpoints import SPECIAL_TOKENS, noise_page, write_processor

CONFIG = QwenVLConfig.from_hf(small_config())
IMAGE = 5  # id of <|image_pad|>
TEXTS = (
    "revenue by region in 2023",
    "a",
    "  spaces \t and\n\nnew lines ",
    "Ünïcödé ﬁ ⅻ 数学 𝔘 e\u0301 \u00e9 👩‍🔬",
    "it's 12,345.67 <|im_end|> not <|vision_start|> closed <think>",
    "long " * 200,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def preprocessor(folder):
    return MultimodalPreprocessor.from_pretrained(folder, CONFIG)


@pytest.fixture(scope="module")
def sized(folder):
    """With sizes of its own: each length goes with each number of patches, shared or not."""
    sizes = [n << i for i in range(6) for n in (64, 96)]
    return MultimodalPreprocessor.from_pretrained(folder, CONFIG, length_buckets=[64, 128], patch_buckets=sizes)


def their_ids(folder, user: str, system: str = "Represent the user's input.", images=(), **options) -> list[int]:
    """transformers' tokenizer on its own rendering, placeholders repeated in the text as its processor does."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": user}]
    turns = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    for h, w in images:
        text = text.replace("<|image_pad|>", "<|placeholder|>" * (h * w // 4), 1)
    return tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"), **options)["input_ids"]


# ---- token ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("sizes", [(), ((64, 96),), ((64, 64), (32, 160), (96, 64))], ids=len)
def test_ids_equal_transformers(folder, preprocessor, text, sizes):
    images = [noise_page(w, h) for h, w in sizes]
    row = preprocessor.tokenize({"text": text, "images": images})
    assert row.input_ids.dtype == np.int32
    assert row.input_ids.tolist() == their_ids(folder, text, images=[(h // 16, w // 16) for h, w in sizes])
    assert row.grids == tuple((1, h // 16, w // 16) for h, w in sizes)
    assert row.patches.shape == (sum(h * w // 256 for h, w in sizes), 3 * 16 * 16)
    assert np.sum(row.input_ids == IMAGE) * 4 == len(row.patches)


def test_patches_of_several_images_follow_each_other(preprocessor):
    first, second = noise_page(64, 96, 1), noise_page(128, 64, 2)
    both = preprocessor.tokenize({"images": [first, second]}).patches
    alone = [preprocessor.tokenize(image).patches for image in (first, second)]
    assert np.array_equal(both, np.concatenate(alone))


@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("max_length", [18, 27, 40, 41, 10_000])
def test_truncation_equals_the_tokenizer_s(tmp_path, max_length, suffix):
    folder = write_processor(tmp_path)
    if suffix:  # some embedding tokenizers end every text with a token of their own
        add_template(folder, "<|endoftext|>")
    text = "revenue by region in the report of the year 2023 " * 3
    ours = (
        MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_length=max_length).tokenize(text).input_ids.tolist()
    )
    assert ours == their_ids(folder, text, truncation=True, max_length=max_length)
    assert len(ours) == max_length or max_length == 10_000
    assert (ours[-1] == 0) == suffix


def add_template(folder, token: str) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [SPECIAL_TOKENS.index(token)], "tokens": [token]}},
    }
    path.write_text(json.dumps(tokenizer))


def test_visual_tokens_are_never_cut(folder):
    image = noise_page(128, 128)  # 16 visual tokens
    whole = MultimodalPreprocessor.from_pretrained(folder, CONFIG).tokenize({"text": "x " * 50, "image": image})
    last_visual = int(np.flatnonzero(whole.input_ids == IMAGE)[-1])
    row = MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_length=last_visual + 1).tokenize(
        {"text": "x", "image": image}
    )
    assert row.input_ids.tolist() == whole.input_ids[: last_visual + 1].tolist()
    tight = MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_length=last_visual - 1)
    with pytest.raises(ValueError, match=r"item 4: 2 of 16 visual tokens do not fit in max_length \d+: pass fewer"):
        tight.tokenize({"text": "x", "image": image}, name="item 4")


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
@pytest.mark.parametrize("key", ["text", "instruction"])
def test_placeholders_in_the_text_are_refused(preprocessor, token, key):
    with pytest.raises(ValueError, match=r"item 4: the text contains the prompt's own token .*: remove"):
        preprocessor.tokenize({"text": "x", "image": noise_page(64, 64), key: f"a {token}"}, name="item 4")


# ---- keep mask


def test_item_without_kept_tokens_keeps_the_pooling_position(folder):
    row = MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_length=1).tokenize("text")
    assert row.input_ids.tolist() == [SPECIAL_TOKENS.index("<|im_start|>")]
    assert row.keep.tolist() == [True]


def test_keep_mask_by_token_name(folder, preprocessor):
    row = preprocessor.tokenize(
        {"text": "a <|endoftext|> b <|im_end|>", "image": noise_page(64, 64), "instruction": "Find"}
    )
    names = AutoTokenizer.from_pretrained(str(folder)).convert_ids_to_tokens(row.input_ids.tolist())
    dropped = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"}
    assert row.keep.tolist() == [name not in dropped for name in names]
    assert {name for name in names if name.startswith("<|")} == dropped | {"<|image_pad|>"}
    words = preprocessor.tokenizer.decode(row.input_ids[row.keep])
    assert words == "system\nFind.\nuser\n" + "<|image_pad|>" * 4 + "a  b \nassistant\n"


def test_other_special_tokens_are_dropped_too(tmp_path):
    folder = write_processor(tmp_path)
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text())
    found["extra_special_tokens"].append("<|box_start|>")
    path.write_text(json.dumps(found))
    row = MultimodalPreprocessor.from_pretrained(folder, CONFIG).tokenize("a<|box_start|>b")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    box = row.input_ids == tokenizer.convert_tokens_to_ids("<|box_start|>")
    assert box.sum() == 1 and not row.keep[box].any()


# ---- batches


def mixed_rows(preprocessor) -> list[TokenizedItem]:
    return [
        preprocessor.tokenize("short"),
        preprocessor.tokenize({"text": "two pictures", "images": [noise_page(64, 96), noise_page(128, 64)]}),
        preprocessor.tokenize(noise_page(96, 64)),
    ]


def test_a_state_that_is_carried_takes_no_padding_before_it(tmp_path):
    folder = write_checkpoint(tmp_path, model_type="qwen3_5")
    hybrid = MultimodalPreprocessor.from_pretrained(folder, load_config(folder), head="qwen3_vl_embedding")
    row = hybrid.tokenize("short")
    assert hybrid.collate([row]).attention_mask[0, : len(row)].all()
    with pytest.raises(ValueError, match="qwen3_5 carries a state .* pad on the right"):
        hybrid.collate([row], padding_side="left")


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_places_every_token(preprocessor, side):
    rows = mixed_rows(preprocessor)
    batch = preprocessor.collate(rows, batch_size=4, padding_side=side)
    B, L = batch.input_ids.shape
    assert (B, L) == (4, 56) and batch.vision.patches.shape == (4, 128, 768)
    types = {
        "input_ids": np.int32,
        "attention_mask": bool,
        "position_ids": np.int32,
        "keep_mask": bool,
        "index": np.int32,
    }
    for name, dtype in types.items():
        assert getattr(batch, name).dtype == dtype
    for b, row in enumerate(rows):
        n = len(row.input_ids)
        places = list(range(n)) if side == "right" else list(range(L - n, L))
        visual = 0
        for at, (token, keep) in enumerate(zip(row.input_ids, row.keep, strict=True)):
            place = places[at]
            assert batch.attention_mask[b, place]
            assert (batch.input_ids[b, place], batch.keep_mask[b, place]) == (token, keep)
            assert batch.index[b, place] == (visual if token == IMAGE else -1)
            visual += token == IMAGE
        padded = np.setdiff1d(np.arange(L), places)
        assert not batch.attention_mask[b, padded].any() and not batch.keep_mask[b, padded].any()
        assert (batch.index[b, padded] == -1).all() and (batch.input_ids[b, padded] == 0).all()


def test_text_positions_count_and_visual_positions_span_the_grid(preprocessor):
    """Text counts up; a 4 x 6 grid (2 x 3 visual tokens) spans rows and columns; text goes on after 3."""
    row = preprocessor.tokenize({"image": noise_page(96, 64), "text": "x"})
    batch = preprocessor.collate([row])
    first = int(np.flatnonzero(row.input_ids == IMAGE)[0])
    n = len(row.input_ids)
    temporal, height, width = batch.position_ids[:, 0]
    assert temporal[:first].tolist() == height[:first].tolist() == width[:first].tolist() == list(range(first))
    assert temporal[first : first + 6].tolist() == [first] * 6
    assert (height[first : first + 6] - first).tolist() == [0, 0, 0, 1, 1, 1]
    assert (width[first : first + 6] - first).tolist() == [0, 1, 2, 0, 1, 2]
    for axis in (temporal, height, width):
        assert axis[first + 6 : n].tolist() == list(range(first + 3, first + 3 + n - first - 6))


def test_vision_bins(preprocessor):
    rows = mixed_rows(preprocessor)
    vision = preprocessor.collate(rows, batch_size=4).vision
    for b, row in enumerate(rows):
        n = len(row.patches)
        assert np.array_equal(vision.patches[b, :n], row.patches)
        assert not vision.patches[b, n:].any() and not vision.segment[b, n:].any()
        assert np.isfinite(vision.interp_w).all()
    assert vision.segment[1, :56].tolist() == [1] * 24 + [2] * 32  # 6 x 4 and 4 x 8 patches
    assert vision.coords[1, 24:32].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert not vision.segment[0].any() and not vision.segment[3].any()
    np.testing.assert_allclose(vision.interp_w[1, :56].sum(-1), 1, atol=1e-6)


def test_rows_of_different_sizes_share_bins(sized):
    rows = [*mixed_rows(sized), sized.tokenize("text")]  # 0, 56, 24 and 0 patches
    batch, apart = sized.collate(rows, shards=1), sized.collate(rows)
    assert apart.vision.patches.shape == (4, 64, 768) and batch.vision.patches.shape == (1, 96, 768)
    for name in ("patches", "coords", "interp_idx", "interp_w"):
        together = getattr(batch.vision, name)[0]
        expected = [getattr(apart.vision, name)[b, : len(row.patches)] for b, row in enumerate(rows)]
        assert np.array_equal(together[:80], np.concatenate(expected)) and not together[80:].any()
    assert batch.vision.segment[0].tolist() == [1] * 24 + [2] * 32 + [3] * 24 + [0] * 16
    index = np.concatenate([batch.index[b, : len(row.input_ids)] for b, row in enumerate(rows)])
    assert index[index >= 0].tolist() == list(range(20))  # each visual token once, in order
    assert np.array_equal(batch.index >= 0, apart.index >= 0)
    for name in ("input_ids", "attention_mask", "position_ids", "keep_mask"):
        assert np.array_equal(getattr(batch, name), getattr(apart, name))


def test_bins_are_shared_where_it_is_cheaper_and_within_a_shard_only(sized):
    pages = [sized.tokenize(noise_page(128, 128)) for _ in range(4)]
    assert sized.collate(pages, shards=1).vision.patches.shape[:2] == (4, 64)  # equal sizes: nothing to gain
    rows = [pages[0], *(sized.tokenize("text") for _ in range(7))]
    shapes = [sized.collate(rows, shards=n).vision.patches.shape[:2] for n in (1, 2, 4, 8)]
    assert shapes == [(1, 64), (2, 64), (4, 64), (8, 64)]
    assert sized.collate(rows[:3], batch_size=8, shards=2).vision.patches.shape[:2] == (2, 64)
    assert sized.collate(rows, shards=1, patches=64).vision.patches.shape[:2] == (8, 64)  # asked for
    with pytest.raises(ValueError, match="batch_size 8 does not divide by shards = 3"):
        sized.collate(rows, shards=3)


def test_one_page_among_texts_has_the_only_bin(folder):
    """Rows share a bin of the most patches that an image may have, without sizes of the user's, too."""
    small = MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_pixels=65536)
    page = small.tokenize(noise_page(256, 256))
    assert len(page.patches) == small.images.max_patches == 256
    rows = [page, *(small.tokenize("text") for _ in range(7))]
    assert small.collate(rows, shards=1).vision.patches.shape[:2] == (1, 256)
    assert small.collate(rows, shards=2).vision.patches.shape[:2] == (2, 256)
    assert small.collate([page] * 4, shards=1).vision.patches.shape[:2] == (4, 256)


def test_a_bin_is_shared_only_if_a_bucket_holds_it(folder):
    small = MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_length=32, max_pixels=16384)
    rows = [small.tokenize(noise_page(128, 128)) for _ in range(3)] + [
        small.tokenize("text")
    ]  # 64 patches each, 128 at most
    assert small.patch_buckets == (64, 128)
    assert small.collate(rows, shards=1).vision.patches.shape[:2] == (4, 64)


def test_filler_rows_attend_to_one_token_and_keep_none(preprocessor):
    batch = preprocessor.collate([preprocessor.tokenize("a")], batch_size=3)
    assert batch.vision is None
    assert batch.attention_mask[1:].sum(1).tolist() == [1, 1] and batch.attention_mask[1:, 0].all()
    assert not batch.keep_mask[1:].any() and (batch.index == -1).all()


@pytest.mark.usefixtures("unchecked")
def test_explicit_sizes(preprocessor):
    rows = [preprocessor.tokenize("a"), preprocessor.tokenize(noise_page(64, 64))]
    batch = preprocessor.collate(rows, length=50, patches=20)
    assert batch.input_ids.shape == (2, 50) and batch.vision.patches.shape == (2, 20, 768)
    assert preprocessor.collate(rows[:1], patches=64).vision.segment.sum() == 0
    for bad in ({"length": 10}, {"patches": 12}, {"patches": 0}, {"batch_size": 1}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} is \d+, but the items need \d+"):
            preprocessor.collate(rows, **bad)
    with pytest.raises(ValueError, match="multiple of merge_size"):
        preprocessor.collate(rows, patches=18)
    with pytest.raises(ValueError, match="no items"):
        preprocessor.collate([])
    with pytest.raises(ValueError, match="padding_side"):
        preprocessor.collate(rows, padding_side="middle")


# ---- buckets


@given(st.integers(1, 8192))
def test_lengths_of_texts_waste_little(preprocessor, n):
    size = preprocessor.length_bucket(n)
    waste = size - n
    assert waste >= 0 and (size <= 32 or waste <= size / 3 or (size > 1024 and waste <= size / 2))
    assert n == 1 or preprocessor.length_bucket(n - 1) <= size


@given(st.integers(1, 8192), st.integers(0, 2047), st.data())
def test_the_shape_of_a_batch_holds_it_and_wastes_little(preprocessor, longest, visual, data):
    fullest = 4 * min(visual, longest)
    L, V = preprocessor.padded_sizes(longest, fullest)
    assert longest <= L and fullest <= V and V % 4 == 0 and (V > 0) == (fullest > 0)
    if fullest and longest <= fullest // 4 + 24:  # no text but a prompt
        assert V - fullest <= (512 if V > 256 else max(64, V / 2)) or fullest > 7200
        assert L <= V // 4 + 48
    less = data.draw(st.integers(1, longest)), data.draw(st.integers(0, fullest)) // 4 * 4
    if less[1]:
        assert all(a <= b for a, b in zip(preprocessor.padded_sizes(*less), (L, V), strict=True))


def page_sizes_of(kind: str, count: int) -> list[tuple[int, int]]:
    """Widths and heights in pixels of pages as they are met."""
    rng = np.random.default_rng(0)
    if kind == "a4":
        return [(round(8.27 * dpi), round(11.69 * dpi)) for dpi in rng.choice([96, 120, 150, 200], count)]
    if kind == "slides":
        heights, ratios = rng.choice([540, 720, 768, 900, 1080], count), rng.choice([16 / 9, 4 / 3], count)
        return [(round(h * ratio), int(h)) for h, ratio in zip(heights, ratios, strict=True)]
    if kind == "mixed":
        return [(int(w), int(h)) for w, h in rng.integers(200, 2500, (count, 2))]
    widths, ratios = rng.normal(1400, 350, count).clip(500, 2600), rng.normal(1.29, 0.2, count).clip(0.5, 2)
    return [(int(w), int(w * ratio)) for w, ratio in zip(widths, ratios, strict=True)]  # as in ColPali's training set


def test_few_shapes_and_little_padding_for_sorted_pages(preprocessor):
    """At most a twentieth of what is computed for batches of 8 pages, longest first, is padding."""
    assert len(preprocessor.shapes) <= 40
    met, prompt = set(), len(preprocessor.tokenize(noise_page(64, 64)).input_ids) - 4
    for kind in ("a4", "slides", "mixed", "colpali"):
        sides = [
            smart_resize(h, w, factor=32, min_pixels=4096, max_pixels=1_843_200) for w, h in page_sizes_of(kind, 600)
        ]
        patches = np.array(sorted((h * w // 256 for h, w in sides), reverse=True)).reshape(-1, 8)
        shapes = np.array([preprocessor.padded_sizes(int(n[0]) // 4 + prompt, int(n[0])) for n in patches])
        met |= set(map(tuple, shapes.tolist()))
        tokens = (patches // 4 + prompt).sum() / (8 * shapes[:, 0]).sum()
        assert min(tokens, patches.sum() / (8 * shapes[:, 1]).sum()) >= 0.95, kind
    assert 10 < len(met) <= len(preprocessor.shapes)
    assert met <= {shape[:2] for shape in preprocessor.shapes}


def test_sizes_cover_everything(folder, preprocessor):
    assert len(preprocessor.length_buckets) == 14 and len(preprocessor.patch_buckets) == 25
    assert preprocessor.length_buckets[-1] == 8192 and preprocessor.patch_buckets[-1] == 8192 * 4
    assert 7200 in preprocessor.patch_buckets  # one image at the ceiling is not padded
    for n, bucket in ((8193, preprocessor.length_bucket), (8192 * 4 + 1, preprocessor.patch_bucket)):
        with pytest.raises(ValueError, match=f"an item has {n} .*raise max_length"):
            bucket(n)
    for need in ((8193, 0), (8193, 4), (8192, 8192 * 4 + 4)):
        with pytest.raises(ValueError, match=r"an item has \d+ .*raise max_length"):
            preprocessor.padded_sizes(*need)
    small = MultimodalPreprocessor.from_pretrained(
        folder, CONFIG, max_length=100, length_buckets=[60, 200], patch_buckets=[65]
    )
    assert small.length_buckets == (60, 100) and small.patch_buckets == (68, 400)
    assert len(small.shapes) == 2 + 2 * 2 * 2 and small.padded_sizes(61, 4) == (100, 68)
    large = MultimodalPreprocessor.from_pretrained(folder, CONFIG, max_length=32768, max_pixels=16384 * 28**2)
    assert 10240 in large.patch_buckets and len(large.shapes) < 60


@pytest.mark.compiles
def test_compilations_are_bounded_by_the_buckets(folder):
    preprocessor = MultimodalPreprocessor.from_pretrained(
        folder, CONFIG, max_length=128, length_buckets=[64], patch_buckets=[32, 64], max_pixels=16384
    )
    compiled = jax.jit(lambda batch: jax.tree.map(lambda x: x.sum(), batch))
    rng, shapes = np.random.default_rng(0), set()
    for seed in range(40):
        text = "word " * int(rng.integers(1, 60))
        images = [noise_page(*rng.integers(20, 200, 2), seed) for _ in range(rng.integers(0, 3))]
        batch = preprocessor.collate([preprocessor.tokenize({"text": text, "images": images})], batch_size=2)
        shapes.add((batch.input_ids.shape, batch.vision and batch.vision.patches.shape))
        compiled(batch)
    bound = len(preprocessor.length_buckets) * (1 + len(preprocessor.patch_buckets))
    assert bound == 2 * 4
    assert 4 <= len(shapes) == compiled._cache_size() <= bound


NO_TORCH = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
import numpy as np
from smart_jax.models import load_config
from smart_jax.inputs.multimodal import MultimodalPreprocessor
preprocessor = MultimodalPreprocessor.from_pretrained(sys.argv[1], load_config(sys.argv[1]))
row = preprocessor.tokenize({"text": "a", "image": np.ones((64, 96, 3), np.uint8)})
batch = preprocessor.collate([row])
print(batch.input_ids.shape, batch.vision.patches.shape, float(row.patches.sum()))
"""


@pytest.mark.compiles
def test_works_where_torch_is_not_installed(tmp_path):
    folder = write_processor(tmp_path)
    (folder / "config.json").write_text(json.dumps(small_config()))
    assert load_config(folder) == CONFIG
    done = subprocess.run([sys.executable, "-c", NO_TORCH, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"(1, 40) (1, 64, 768) {24 * 768.0}"


def test_rows_do_not_depend_on_each_other(preprocessor):
    items = ["a", noise_page(64, 64), {"text": "long " * 3000}, "b"]
    expected = [preprocessor.tokenize(item).input_ids.tolist() for item in items]
    for order in itertools.permutations(range(4)):
        assert [preprocessor.tokenize(items[i]).input_ids.tolist() for i in order] == [expected[i] for i in order]


def test_the_last_token_of_a_vocabulary_is_in_it(checkpoint):
    config = load_config(checkpoint)
    largest = max(Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab().values())

    def opened(size):
        return open_preprocessor(
            Checkpoint(checkpoint), dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=size))
        )

    opened(largest + 1)
    with pytest.raises(ValueError, match=f"ids up to {largest}, the backbone's vocabulary ends before {largest}:"):
        opened(largest)
