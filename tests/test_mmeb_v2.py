"""MMEB-V2: every task on a small folder in its layout, what is refused, the config, and the leaderboard's files."""

import datetime
import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import smart_jax
from configs import mmeb_v2
from eval.benchmarks import Benchmark, Deferred, LazyItems, vidore
from eval.benchmarks.mmeb_v2 import table
from eval.benchmarks.mmeb_v2.__main__ import main as mmeb_main
from eval.benchmarks.mmeb_v2.loaders import load
from eval.benchmarks.mmeb_v2.media import Media
from eval.benchmarks.mmeb_v2.table import TASKS
from eval.methods import MODEL_METHODS, run_benchmark
from eval.reports import Group, leaderboard, markdown, published, summarise
from eval.run import evaluate
from smart_jax.inputs.item import parse_item
from tests import mmeb_folders as folders
from tests import vidore_folders
from tests.fake_encoder import FakeEncoder
from tests.mmeb_folders import IMAGE_TO_IMAGE, MVBENCH, OOD, TO_IMAGE, TO_TEXT, V1, V2, VISRAG, Watcher, words_of

ROOT = Path(__file__).parent.parent
TABLE = {task.name: task for task in TASKS}
PAGE_INSTRUCTION = "Find a document image that matches the given query."
CHOOSE = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer."
)
MOMENT = "Find the clip that corresponds to the described scene in the given video."
# By hand, from the public code: queries on the leaderboard, instruction, ranking.
VIDEOS = {
    "K700": (1000, "Recognize the category of the video content.", "global"),
    "SmthSmthV2": (
        1000,
        "What actions or object interactions are being performed by the person in the video?",
        "local",
    ),
    "HMDB51": (1000, "What actions or objects interactions are the person in the video doing?", "global"),
    "UCF101": (1000, "What activities or sports are being performed by the person in the video?", "global"),
    "Breakfast": (433, "Recognize the breakfast type that the person is cooking in the video.", "global"),
    "MVBench": (4000, CHOOSE, "local"),
    "Video-MME": (2700, CHOOSE, "local"),
    "NExTQA": (8564, CHOOSE, "local"),
    "EgoSchema": (500, CHOOSE, "local"),
    "ActivityNetQA": (1000, CHOOSE, "local"),
    "DiDeMo": (1004, "Find a video that includes the following described scenes.", "global"),
    "MSR-VTT": (1000, "Find a video that contains the following visual content.", "global"),
    "MSVD": (670, "Find the video snippet that corresponds to the given summary.", "global"),
    "VATEX": (4478, "Select a video that fits the description provided.", "global"),
    "YouCook2": (3179, "Find a video that demonstrates the following action while making a recipe.", "global"),
    "QVHighlight": (1083, MOMENT, "local"),
    "Charades-STA": (727, MOMENT, "local"),
    "MomentSeeker": (1602, None, "local"),
}
IMAGES = (*TO_TEXT, *TO_IMAGE, *IMAGE_TO_IMAGE)
DOCUMENTS = (*V1, *V2, *(f"VisRAG_{name}" for name in VISRAG), *OOD)
FRAMES = "video-tasks/frames"
WIN = (1.0, 1.0, 0.0)  # hit@1 of late interaction of the three rows of an image task


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of all tasks; read only."""
    return folders.write_all(tmp_path_factory.mktemp("MMEB-V2"))


def opened(name, root):
    return load(TABLE[name], root)


def words(item):
    """Lists what can be seen and read in an item, after the names of its parts."""
    parsed = parse_item(item)
    parts = [[word for frame in video for word in words_of(frame)] for video in parsed.videos]
    return [*parts, *map(words_of, parsed.images), *parsed.texts]


def late(benchmark, metric="hit@1"):
    result = run_benchmark(Watcher(), benchmark, methods=("late",), metrics=(metric,))
    return result.values["late"][metric].tolist()


def tie(dataset, query, name):
    """The reference's hash of a query's key and a candidate's name, big-endian; among equals the least comes first."""
    return hashlib.blake2b(f"{dataset}:{query}\0{name}\0".encode(), digest_size=8).digest()


def first_by_hash(dataset, query, names):
    """The candidate that wins a tie."""
    return min(names, key=lambda name: tie(dataset, query, name))


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_the_78_tasks():
    assert len(TASKS) == len(TABLE) == 78
    modalities = {modality: [t.name for t in TASKS if t.modality == modality] for modality in table.MODALITIES}
    assert {name: len(set(names)) for name, names in modalities.items()} == {"image": 36, "video": 18, "visdoc": 24}
    assert set(modalities["image"]) == set(IMAGES)
    assert set(modalities["video"]) == set(VIDEOS)
    assert set(modalities["visdoc"]) == set(DOCUMENTS)
    assert {t.metric for t in TASKS if t.modality == "visdoc"} == {"ndcg@5"}
    assert {t.metric for t in TASKS if t.modality != "visdoc"} == {"hit@1"}
    assert {t.global_ranking for t in TASKS if t.modality == "visdoc"} == {True}
    assert {t.global_ranking for t in TASKS if t.modality == "image"} == {False}
    for name, (queries, instruction, ranking) in VIDEOS.items():
        task = TABLE[name]
        assert (task.queries, task.instruction, task.global_ranking) == (queries, instruction, ranking == "global")
    assert TABLE["SmthSmthV2"].limit == 1000 and {t.limit for t in TASKS if t.name != "SmthSmthV2"} == {None}
    assert {t.queries for t in TASKS if t.modality == "image"} == {1000}
    assert sum(t.queries for t in TASKS if t.modality == "visdoc") == 12_590
    assert table.FRAMES == 64 and table.CLIP_FRAMES == 8


def test_groups():
    sizes = {name: len(tasks) for name, tasks in table.groups().items()}
    assert sizes == {
        "MMEB-V2": 78,
        "MMEB-V2, 41 retrieval tasks": 41,
        **{"MMEB-V2, images": 36, "MMEB-V2, images, Classification": 10, "MMEB-V2, images, QA": 10},
        **{"MMEB-V2, images, Retrieval": 12, "MMEB-V2, images, Grounding": 4},
        **{"MMEB-V2, videos": 18, "MMEB-V2, videos, Classification": 5, "MMEB-V2, videos, QA": 5},
        **{"MMEB-V2, videos, Retrieval": 5, "MMEB-V2, videos, Moment retrieval": 3},
        **{"MMEB-V2, visual documents": 24, "MMEB-V2, visual documents, ViDoRe V1": 10},
        **{"MMEB-V2, visual documents, ViDoRe V2": 4, "MMEB-V2, visual documents, VisRAG": 6},
        "MMEB-V2, visual documents, OOD": 4,
    }
    retrieval = {task.name for task in table.groups()["MMEB-V2, 41 retrieval tasks"]}
    images = (
        "MSCOCO_i2t VisualNews_i2t VisDial MSCOCO_t2i VisualNews_t2i WebQA EDIS Wiki-SS-NQ CIRR NIGHTS OVEN FashionIQ"
    )
    assert retrieval == {*images.split(), "MSR-VTT", "MSVD", "DiDeMo", "YouCook2", "VATEX", *DOCUMENTS}
    names = {task.name for task in table.groups()["MMEB-V2, images, Grounding"]}
    assert names == {"MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"}


def test_select():
    assert len(table.select()) == 78 and len(table.select(modalities=["video"])) == 18
    assert [t.name for t in table.select(["MSVD", "CIRR"])] == ["CIRR", "MSVD"]
    with pytest.raises(ValueError, match="unknown tasks 'K-700': use some of ImageNet-1K, "):
        table.select(["K-700"])
    with pytest.raises(ValueError, match="unknown modalities 'audio': use some of image, video, visdoc"):
        table.select(modalities=["audio"])
    with pytest.raises(ValueError, match="'CIRR' are no video tasks: leave the modality out"):
        table.select(["CIRR", "MSVD"], ["video"])


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TO_TEXT)
def test_image_to_text(name, root):
    benchmark, folder = opened(name, root), root / "image-tasks" / name
    asked = {"instruction": f"Represent {name}:"}
    assert benchmark.queries == [
        {**asked, "text": "", "image": str(folder / "q0.jpg")},
        {**asked, "text": " what  is\nit? ", "image": str(folder / "q1.jpg")},
        {**asked, "text": "where?", "image": str(folder / "q2.png")},
    ]
    assert benchmark.corpus_ids == ["amber", "basalt", "cedar", "delta", "ember\tfjord"]
    assert benchmark.corpus == [{"text": text} for text in benchmark.corpus_ids]
    assert benchmark.qrels == {"0": {"amber": 1}, "1": {"delta": 1}, "2": {"ember\tfjord": 1}}
    assert benchmark.candidates == {
        **{"0": ["amber", "basalt", "cedar"], "1": ["delta", "amber"], "2": ["ember\tfjord", "amber"]}
    }
    assert (benchmark.name, benchmark.instruction, benchmark.document_instruction) == (name, None, None)
    assert [words(query) for query in benchmark.queries] == [
        [["amber"]],
        [["basalt", "amber"], " what  is\nit? "],
        [["fjord", "ember"], "where?"],
    ]
    assert late(benchmark) == [1, 0, 1]


@pytest.mark.parametrize("name", TO_IMAGE)
def test_text_to_image(name, root):
    benchmark = opened(name, root)
    a, b, c = (f"{name}/{file}" for file in ("a.png", "b.png", "c.jpg"))
    path = {name: str(root / "image-tasks" / name) for name in (a, b, c)}
    asked = {"instruction": f"Represent {name}:"}
    assert benchmark.queries == [
        {**asked, "text": " amber\n\n basalt "},
        {**asked, "text": "delta ember"},
        {**asked, "text": "fjord delta"},
    ]
    assert benchmark.corpus_ids == [a, b, c]
    assert benchmark.corpus == [{"image": path[a]}, {"image": path[b]}, {"image": path[c], "text": "ember"}]
    assert benchmark.qrels == {"0": {a: 1}, "1": {c: 1}, "2": {b: 1}}
    assert benchmark.candidates == {"0": [a, b], "1": [c, a], "2": [b, c]}
    assert (benchmark.name, benchmark.instruction, benchmark.document_instruction) == (name, None, None)
    assert [words(item) for item in benchmark.corpus] == [[["amber", "basalt"]], [["cedar"]], [["delta"], "ember"]]
    assert late(benchmark) == [1, 1, 0]


@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_image_to_image(name, root):
    benchmark, folder = opened(name, root), root / "image-tasks" / name
    a, b = f"{name}/a.png", f"{name}/b.png"
    asked = {"instruction": f"Represent {name}:"}
    assert benchmark.queries == [
        {**asked, "text": "", "image": str(folder / "q0.jpg")},
        {**asked, "text": " keep  this\n", "image": str(folder / "q1.jpg")},
        {**asked, "text": "fjord", "image": str(folder / "q2.png")},
    ]
    # The blank first text leaves the candidates of row 2 without one, and gives the first a name of its own.
    names = [f"{a}:", f"{b}:", f'{a}:delta "ember', f"{a}: amber ", f"{a}: "]
    image = {"a": str(folder / "a.png"), "b": str(folder / "b.png")}
    assert benchmark.corpus_ids == names
    assert benchmark.corpus == [
        {"image": image["a"]},
        {"image": image["b"]},
        {"image": image["a"], "text": 'delta "ember"'},
        {"image": image["a"], "text": " amber "},
        {"image": image["a"]},
    ]
    assert benchmark.qrels == {"0": {names[0]: 1}, "1": {names[2]: 1}, "2": {names[4]: 1}}
    assert benchmark.candidates == {"0": names[:2], "1": names[2:4], "2": [names[4], names[1]]}
    assert (benchmark.name, benchmark.instruction, benchmark.document_instruction) == (name, None, None)
    assert late(benchmark) == [1, 1, 0]


def test_small_images_are_enlarged(tmp_path):
    """A side below 28 pixels: by Pillow's usual resize to 56 x 56, under the same name; others are not read."""
    folder, rng = tmp_path / "image-tasks" / "CIRR", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, size in (("a.png", (27, 400)), ("b.png", (28, 28)), ("c.png", (5, 5))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "d.png").write_bytes(b"no image")
    media = Media(TABLE["CIRR"], tmp_path)
    for name in ("a.png", "c.png"):
        found = media.image(f"CIRR/{name}")
        expected = Image.open(folder / name).resize((56, 56), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        assert media.image(f"CIRR/{name}") is found
    for name in ("b.png", "d.png"):
        assert media.image(f"CIRR/{name}") == str(folder / name)


# --- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label", "classes"),
    [("K700", "archery", 700), ("HMDB51", "brush_hair", 51), ("UCF101", "Archery", 101), ("Breakfast", "tea", 10)],
)
def test_video_classes(name, label, classes, root):
    benchmark, folder = opened(name, root), root / FRAMES / "video_cls" / name
    paths = {
        "amber_1": [folder / "amber_1" / "frame_9.jpg", folder / "amber_1" / "frame_10.jpg"],
        "v (2)": [folder / "v (2)" / "frame_9.jpg"],
        "cedar.3": [folder / "cedar.3" / f"frame_{i}.jpg" for i in (9, 10, 11)],
    }
    assert benchmark.queries == [{"video": list(map(str, p)), "max_frames": 64} for p in paths.values()]
    assert words(benchmark.queries[0]) == [["amber", "amber", "basalt"]]
    assert benchmark.corpus_ids[:2] == ["amber", label]
    assert len(benchmark.corpus_ids) == classes + 1  # "amber" is no class
    assert benchmark.corpus == [{"text": text} for text in benchmark.corpus_ids]
    assert benchmark.qrels == {"0": {"amber": 1}, "1": {label: 1}, "2": {label: 1}}
    assert benchmark.candidates is None
    assert benchmark.instruction == VIDEOS[name][1]
    first = [first_by_hash(name, query, benchmark.corpus_ids) for query in (1, 2)]  # nothing else tells them apart
    assert late(benchmark) == [1, *(float(winner == label) for winner in first)]


def test_classes_of_the_rows(root, caplog):
    with caplog.at_level(logging.WARNING):
        benchmark = opened("SmthSmthV2", root)
    assert "pos_text" not in caplog.text
    folder = root / FRAMES / "video_cls" / "SSv2"
    assert benchmark.queries[0] == {"video": [str(folder / "74225" / "frame_9.jpg")], "max_frames": 64}
    assert benchmark.corpus_ids == ["basalt", "amber", "cedar", "ember", "delta"]
    assert benchmark.candidates == {"0": ["basalt", "amber", "cedar"], "1": ["ember", "delta"]}
    assert benchmark.qrels == {"0": {"amber": 1}, "1": {"delta": 1}}
    assert late(benchmark) == [1, 0]


def test_a_class_that_is_no_candidate_counts_as_a_miss(tmp_path, caplog):
    folders.write_classes(tmp_path)
    path = tmp_path / "VLM2Vec" / "SmthSmthV2" / "data" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    folders.jsonl(path, [{**rows[0], "neg_text": ["basalt"]}, rows[1]])
    with caplog.at_level(logging.WARNING):
        benchmark = opened("SmthSmthV2", tmp_path)
    assert f"row 0 of '{path}': 'pos_text' is not among the candidates of 'neg_text'" in caplog.text
    assert benchmark.candidates["0"] == ["basalt"] and late(benchmark) == [0, 0]


def test_only_the_first_1000_rows_of_smthsmthv2(tmp_path):
    folders.write_classes(tmp_path)
    path = tmp_path / "VLM2Vec" / "SmthSmthV2" / "data" / "test.jsonl"
    path.write_text(path.read_text().splitlines()[0].join(["", "\n"]) * 1000 + "{broken")
    assert len(opened("SmthSmthV2", tmp_path).queries) == 1000


# For each: query texts, each with its candidates' names and what they are encoded as, the labels, hit@1.
QUESTIONS = {
    "Video-MME": (
        [
            "What is seen?\nA. Amber.\nB. amber\nC. fjord...\nD. no",
            "What is seen?\nA. delta\nB. cedar. \nC. fjord\nD. no",
        ],
        [["A. Amber.", "B. amber", "C. fjord...", "D. no"], ["A. delta", "B. cedar. ", "C. fjord", "D. no"]],
        [["Amber", "amber", "fjord", "no"], ["delta", "cedar", "fjord", "no"]],
        ["B. amber", "D. no"],
        [1, 0],
    ),
    "NExTQA": (
        [
            "what now\nOptions:\n(A) fjord\n(B) amber \n(C) basalt\n(D) x\n(E) y",
            "what now\nOptions:\n(A) amber\n(B) z\n(C) basalt\n(D) x\n(E) y",
        ],
        [
            ["(A) fjord", "(B) amber ", "(C) basalt", "(D) x", "(E) y "],
            ["(A) amber", "(B) z", "(C) basalt", "(D) x", "(E) y"],
        ],
        None,
        ["(B) amber ", "(E) y"],
        # Amber is seen, and every word is read that an option has: amber and basalt are alike.
        None,
    ),
    "EgoSchema": (
        ["What is seen? A. delta B. C. amber.", "What is seen? A. amber B. cedar"],
        [["A. delta", "B. C. amber."], ["A. amber", "B. cedar"]],
        [["delta", "C. amber"], ["amber", "cedar"]],
        ["B. C. amber.", "B. cedar"],
        [1, 0],
    ),
    "ActivityNetQA": (
        ["is it amber? (A) yes; (B) no."] * 2,
        [["yes", "no"]] * 2,
        None,
        ["no", "yes"],
        None,
    ),
}
VIDEO_OF = {
    "Video-MME": ("Video-MME/v-1", ["amber", "cedar"]),
    "NExTQA": ("NExTQA/3238737531", ["amber"]),
    "EgoSchema": ("egoschema/0a-1", ["amber"]),
    "ActivityNetQA": ("ActivityNetQA/v_1QI", ["amber"]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_video_questions(name, root):
    benchmark = opened(name, root)
    texts, names, shown, labels, hits = QUESTIONS[name]
    folder, seen = VIDEO_OF[name]
    video = [str(root / FRAMES / "video_qa" / folder / f"frame_{9 + i}.jpg") for i in range(len(seen))]
    assert benchmark.queries == [{"video": video, "max_frames": 64, "text": text} for text in texts]
    assert words(benchmark.queries[0]) == [seen, texts[0]]
    encoded = dict(zip(chain(*names), chain(*(shown or names)), strict=True))
    assert dict(zip(benchmark.corpus_ids, benchmark.corpus, strict=True)) == {
        name: {"text": text} for name, text in encoded.items()
    }
    assert benchmark.candidates == {str(i): own for i, own in enumerate(names)}
    assert benchmark.qrels == {str(i): {label: 1} for i, label in enumerate(labels)}
    assert (benchmark.instruction, benchmark.document_instruction) == (CHOOSE, None)
    assert hits is None or late(benchmark) == hits


def test_mvbench(root):
    benchmark = opened("MVBench", root)
    assert len(benchmark.queries) == 20
    folder = root / FRAMES / "video_qa" / "MVBench"
    video = [str(folder / "episodic_reasoning" / "clip0.mp4" / f"frame_{i}.jpeg") for i in (9, 10)]
    text = "What is seen?\nOptions:\n(A) delta\n(B) amber\n(C) amber"
    assert benchmark.queries[0] == {"video": video, "max_frames": 64, "text": text}
    assert benchmark.queries[19]["video"][0] == str(folder / MVBENCH[19] / "clip19.mp4" / "frame_9.jpeg")
    assert benchmark.corpus_ids == ["(A) delta", "(B) amber", "(C) amber", "(A) cedar", "(B) basalt"]
    assert benchmark.corpus == [{"text": text} for text in benchmark.corpus_ids]
    assert benchmark.qrels["0"] == {"(C) amber": 1}  # the last of equal options
    assert benchmark.qrels["19"] == {"(B) basalt": 1} and benchmark.candidates["19"] == ["(A) cedar", "(B) basalt"]
    assert benchmark.instruction == CHOOSE
    winner = first_by_hash("MVBench", 0, ["(B) amber", "(C) amber"])
    assert late(benchmark)[0] == float(winner == "(C) amber")


@pytest.mark.parametrize("name", ["DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2"])
def test_captions(name, root):
    benchmark = opened(name, root)
    folder = root / FRAMES / "video_ret" / "data" / "ziyan" / "video_retrieval" / name / "frames"
    assert benchmark.queries == [{"text": " amber  basalt\n"}, {"text": "cedar"}, {"text": "delta"}]
    assert benchmark.corpus_ids == ["v one", "v.two"]
    assert benchmark.corpus == [
        {"video": [str(folder / video / f"frame_{i}.jpg") for i in (9, 10)], "max_frames": 64}
        for video in ("v one", "v.two")
    ]
    assert [words(item) for item in benchmark.corpus] == [[["amber", "basalt"]], [["cedar", "delta"]]]
    assert benchmark.qrels == {"0": {"v one": 1}, "1": {"v.two": 1}, "2": {"v one": 1}}
    assert benchmark.candidates is None
    assert (benchmark.instruction, benchmark.document_instruction) == (VIDEOS[name][1], None)
    assert late(benchmark) == [1, 1, 0]


@pytest.mark.parametrize("name", ["QVHighlight", "Charades-STA"])
def test_moments(name, root):
    benchmark = opened(name, root)
    here = f"{FRAMES}/video_mret/{name}"
    one = [f"{here}/one.v1/{clip}" for clip in ("negative_2", "negative_10", "positive_0")]
    two = [f"{here}/two/{clip}" for clip in ("negative_0", "positive_1", "positive_2")]
    assert benchmark.corpus_ids == [*one, *two]
    assert [words(item) for item in benchmark.corpus] == [
        *([["cedar"]], [["fjord"]], [["amber"]], [["delta", "basalt"]], [["ember"] * 8], [["delta"]])
    ]
    first = [str(root / here / "one.v1" / "query" / f"frame_{i}.jpg") for i in (9, 10)]
    assert benchmark.queries[0] == {"video": first, "max_frames": 64, "text": "amber "}
    second = benchmark.queries[1]["video"]
    assert [Path(frame).name for frame in (second[0], second[1], second[10], second[63])] == [
        *("frame_9.jpg", "frame_10.jpg", "frame_19.jpg", "frame_78.jpg")
    ]
    assert len(second) == 64 and {item["max_frames"] for item in benchmark.corpus} == {64}
    assert benchmark.qrels == {"0": {one[2]: 1}, "1": {two[1]: 1, two[2]: 1}}
    assert benchmark.candidates == {"0": one, "1": two}
    assert benchmark.instruction == MOMENT
    assert late(benchmark) == [1, 0]  # amber and cedar are seen and asked for; basalt and delta are both in one clip


def test_frames_are_evenly_spread(tmp_path):
    folders.write_moments(tmp_path)
    frames = opened("QVHighlight", tmp_path).queries[1]["video"]
    chosen = [int(re.findall(r"\d+", Path(frame).name)[0]) - 9 for frame in frames]
    assert chosen == [int(i * 69 / 63) for i in range(64)]


def test_momentseeker(root, caplog):
    with caplog.at_level(logging.WARNING):
        benchmark = opened("MomentSeeker", root)
    assert "task MomentSeeker has 3 queries, on the leaderboard 1602" in caplog.text
    here = f"{FRAMES}/video_mret/MomentSeeker"
    clip = {name: f"{here}/video_frames/{name}" for name in ("a_b_one", "a_two", "three")}
    one, two, three = clip.values()
    assert benchmark.queries == [
        {"text": "amber", "instruction": "Find the clip that corresponds to the given text."},
        {
            "text": "like this",
            "image": str(root / here / "query_img_7.jpg"),
            "instruction": "Select the video clip that aligns with the given text and image.",
        },
        {
            "text": "after this",
            "video": [str(root / here / "video_frames" / "long_movie" / "frame_9.jpg")],
            "max_frames": 64,
            "instruction": "Find the clip that corresponds to the given sentence and video segment.",
        },
    ]
    assert benchmark.corpus_ids == [one, two, three]
    assert benchmark.corpus[0] == {"video": [str(root / one / "frame_9.jpg")], "max_frames": 64}
    assert benchmark.qrels == {"0": {one: 1}, "1": {two: 1}, "2": {three: 1, one: 1}}
    assert benchmark.candidates == {"0": [one, two], "1": [two, three], "2": [three, one, two]}
    assert benchmark.instruction is None
    assert late(benchmark) == [1, 1, 0]


# --- visual documents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*V1, *V2, *OOD])
def test_documents(name, root):
    benchmark = opened(name, root)
    expected = vidore_folders.V2 if name in V2 else vidore_folders.V1
    assert benchmark.name == name
    assert benchmark.queries == [{"text": text} for text in expected["queries"]]
    assert (benchmark.query_ids, benchmark.qrels) == (expected["query_ids"], expected["qrels"])
    assert (benchmark.corpus_ids, benchmark.candidates) == (vidore_folders.CORPUS_IDS, None)
    assert (benchmark.instruction, benchmark.document_instruction) == (PAGE_INSTRUCTION, None)
    assert [" ".join(words_of(page["image"])) for page in benchmark.corpus] == list(vidore_folders.PAGES.values())
    perfect, swapped = 1, (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))  # grades 1 and 2 in the wrong order
    values = [swapped, perfect] * 2 if name in V2 else [perfect] * 3
    assert late(benchmark, "ndcg@5") == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("name", VISRAG)
def test_visrag(name, root):
    benchmark = opened(f"VisRAG_{name}", root)
    assert benchmark.name == f"VisRAG_{name}"
    assert benchmark.queries == [{"text": "amber?  basalt"}, {"text": "cedar"}]
    assert benchmark.corpus_ids == [folders.PAGE, "b.png", "c.png"]
    assert benchmark.qrels == {"q-1": {folders.PAGE: 1}, "q-2": {"b.png": 1, "c.png": 1}}
    assert (benchmark.candidates, benchmark.instruction) == (None, PAGE_INSTRUCTION)
    # The first page is a file of the image archive, the others are in the corpus.
    assert benchmark.corpus[0] == {"image": root / "visdoc-tasks/images" / f"VisRAG_{name}" / folders.SHORT_PAGE}
    assert [words_of(page["image"]) for page in benchmark.corpus] == [["basalt"], ["cedar"], ["amber"]]
    first = first_by_hash(f"VisRAG_{name}", 1, [folders.PAGE, "c.png"])  # both miss "cedar"
    second = 1 + (1 / np.log2(3) if first == "c.png" else 1 / 2)
    assert late(benchmark, "ndcg@5") == pytest.approx([1, second / (1 + 1 / np.log2(3))], abs=1e-12)


def test_pages_come_from_the_image_archive_where_it_has_them(tmp_path):
    folders.write_documents(tmp_path)
    folder = tmp_path / "visdoc-tasks" / "images"
    folders.picture(folder / "biomedical_lectures_v2_multilingual" / "11.png", "fjord")
    folders.picture(folder / "ViDoSeek-page" / "11.png", "fjord")  # of the set before it was fixed
    pages = opened("ViDoRe_biomedical_lectures_v2_multilingual", tmp_path).corpus
    assert [words_of(page["image"]) for page in pages[1:3]] == [["fjord"], ["fjord", "amber"]]
    assert words_of(opened("ViDoSeek-page-fixed", tmp_path).corpus[1]["image"]) == ["delta", "ember"]
    for page in (10, 11, 12, 13):
        folders.picture(folder / "ViDoSeek-doc" / f"{page}.png", "fjord")
    expected = [{"image": folder / "ViDoSeek-doc" / f"{page}.png"} for page in (10, 11, 12, 13)]
    assert opened("ViDoSeek-doc", tmp_path).corpus == expected


@pytest.mark.parametrize("place", ["ViDoSeek", "visdoc-tasks/data/ViDoSeek", "visdoc-tasks/ViDoSeek"])
def test_places_of_documents(place, tmp_path):
    vidore_folders.write_v1(tmp_path / place)
    assert opened("ViDoSeek-doc", tmp_path).name == "ViDoSeek-doc"


def test_missing_documents_say_what_to_download_and_where_it_goes(tmp_path):
    target = tmp_path / "VLM2Vec" / "MMLongBench-page-fixed"
    command = f"`hf download --repo-type dataset VLM2Vec/MMLongBench-page-fixed --local-dir {target}` gets it"
    with pytest.raises(FileNotFoundError, match=f"task MMLongBench-page-fixed: .*{command}"):
        opened("MMLongBench-page-fixed", tmp_path)
    folders.write_documents(tmp_path)
    (tmp_path / "openbmb" / "VisRAG-Ret-Test-ChartQA" / "qrels" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="set VisRAG_ChartQA: .*has no file train-.*openbmb/VisRAG-Ret-Test-C"):
        opened("VisRAG_ChartQA", tmp_path)
    assert vidore.SETS and all(entry.split == "test" for entry in vidore.SETS)


# --- the tiny model --------------------------------------------------------------------------------------------------

PROMPT = (
    "<|im_start|>system\n{{ instruction | sentence }}<|im_end|>\n<|im_start|>user\n{{ visual }}{{ texts | join }}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
SIZES = {"video_min_pixels": 1024, "video_max_pixels": 4096, "video_total_pixels": 65536}
BUCKETS = {"length_buckets": [32, 128, 512], "patch_buckets": [64, 256]}
IMAGE_MARK, VIDEO_MARK = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))


@pytest.fixture(scope="module")
def tiny():
    """The embedded model with a prompt that writes videos, as Qwen3-VL-Embedding's does, and few shapes of rows."""
    return smart_jax.load(
        "tiny", prompt=PROMPT, settings={**SIZES, "length_buckets": [128, 512], "patch_buckets": [256]}
    )


def prompt_of(encoder, item, instruction, query):
    parsed = parse_item(item)
    return encoder.preprocessor.prompt(
        parsed.texts,
        len(parsed.images),
        video_count=len(parsed.videos),
        instruction=parsed.instruction or instruction,
        query=query,
    )


def turns(system, user):
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


DEFAULT = "Represent the user's input."
PROMPTS = {  # of the second query and the last candidate
    "VOC2007": (("Represent VOC2007:", f"{IMAGE_MARK} what  is\nit? "), "ember\tfjord"),
    "WebQA": (("Represent WebQA:", "delta ember"), f"{IMAGE_MARK}ember"),
    "RefCOCO-Matching": (("Represent RefCOCO-Matching:", f"{IMAGE_MARK} keep  this\n"), IMAGE_MARK),
    "SmthSmthV2": ((VIDEOS["SmthSmthV2"][1], VIDEO_MARK), "delta"),
    "Breakfast": ((VIDEOS["Breakfast"][1], VIDEO_MARK), "scrambledegg"),
    "Video-MME": ((CHOOSE, f"{VIDEO_MARK}What is seen?\nA. delta\nB. cedar. \nC. fjord\nD. no"), "fjord"),
    "MSVD": ((VIDEOS["MSVD"][1], "cedar"), VIDEO_MARK),
    "QVHighlight": ((MOMENT, f"{VIDEO_MARK}delta"), VIDEO_MARK),
    "MomentSeeker": (
        ("Select the video clip that aligns with the given text and image.", f"{IMAGE_MARK}like this"),
        VIDEO_MARK,
    ),
    "VisRAG_PlotQA": ((PAGE_INSTRUCTION, "cedar"), IMAGE_MARK),
    "ViDoSeek-page-fixed": ((PAGE_INSTRUCTION, "delta ember"), IMAGE_MARK),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name, root, tiny):
    benchmark = opened(name, root)
    query, document = PROMPTS[name]
    assert prompt_of(tiny, benchmark.queries[1], benchmark.instruction, True) == turns(*query)
    last = sorted(benchmark.corpus_ids)[-2] if name == "Breakfast" else benchmark.corpus_ids[-1]
    item = benchmark.corpus[benchmark.corpus_ids.index(last)]
    assert prompt_of(tiny, item, benchmark.document_instruction, False) == turns(DEFAULT, document)


class Recorder(FakeEncoder):
    """An encoder that keeps what it gave."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.given = encoder, {}

    def encode_query(self, items, **options):
        self.given["query"] = self.encoder.encode_query(items, **options)
        return self.given["query"]

    def encode_document(self, items, **options):
        self.given["document"] = self.encoder.encode_document(items, **options)
        return self.given["document"]


def vectors(embeddings, index):
    start, stop = embeddings.offsets[index : index + 2]
    return embeddings.pooled[index].astype(np.float64), embeddings.tokens[start:stop].astype(np.float64)


def oracle(task, benchmark, given):
    """The task's metric of every query and row, from float64 scores, ties by the reference's hash."""
    position = {name: i for i, name in enumerate(benchmark.corpus_ids)}
    values = {row: [] for row in MODEL_METHODS}
    for number, query in enumerate(benchmark.query_ids):
        pooled, tokens = vectors(given["query"], number)
        names = benchmark.corpus_ids if benchmark.candidates is None else benchmark.candidates[query]
        scores = {row: {} for row in MODEL_METHODS}
        for name in names:
            page_pooled, page_tokens = vectors(given["document"], position[name])
            scores["pooled"][name] = pooled @ page_pooled
            scores["late"][name] = (tokens @ page_tokens.T).max(axis=1).mean()
            scores["hybrid"][name] = scores["pooled"][name] + scores["late"][name]
        for row, found in scores.items():
            ranked = sorted(names, key=lambda name, found=found: -round(found[name], 6))
            top = [name for name in names if round(found[name], 6) == round(found[ranked[0]], 6)]
            grades = benchmark.qrels[query]
            if task.metric == "hit@1":
                values[row].append(float(first_by_hash(task.name, number, top) in grades))
            else:
                gains = [grades.get(name, 0) / np.log2(rank + 2) for rank, name in enumerate(ranked[:5])]
                ideal = sorted(grades.values(), reverse=True)[:5]
                best = sum(grade / np.log2(rank + 2) for rank, grade in enumerate(ideal))
                values[row].append(sum(gains) / best)
    return values


@pytest.mark.slow
def test_every_task_through_the_tiny_model(root, tiny):
    for task in TASKS:
        benchmark, recorder = load(task, root), Recorder(tiny)
        result = run_benchmark(recorder, benchmark, methods=MODEL_METHODS, metrics=(task.metric,))
        assert (result.benchmark, result.local) == (task.name, not task.global_ranking)
        expected = oracle(task, benchmark, recorder.given)
        for row in MODEL_METHODS:
            np.testing.assert_allclose(result.values[row][task.metric], expected[row], atol=1e-12, err_msg=task.name)


# --- what is refused -------------------------------------------------------------------------------------------------


def annotated(name, root):
    """Returns where a task's annotations are in `root`, and its rows."""
    source = TABLE[name].source
    path = root / source.repository / source.files
    if path.suffix == ".jsonl":
        return path, [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return path, json.loads(path.read_text())
    path = path.parent / f"{path.name}-00000-of-00001.parquet"
    return path, pq.read_table(path).to_pylist()


def rewrite(name, root, row, **changes):
    """Changes values of a row, for all rows where the type does not fit; None as a key's value removes the column."""
    path, rows = annotated(name, root)
    for column, value in changes.items():
        if value is Ellipsis:
            rows = [{key: x for key, x in r.items() if key != column} for r in rows]
        else:
            rows[row][column] = value
    if path.suffix == ".jsonl":
        folders.jsonl(path, rows)
    elif path.suffix == ".json":
        folders.json_list(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def copy(root, tmp_path):
    """Copies the files of tasks to a folder of the test's own."""

    def make(*names):
        for name in names:
            parts = [f"ziyjiang/MMEB_Test_Instruct/{name}", f"image-tasks/{name}"]
            if name in VIDEOS:
                parts = [TABLE[name].source.repository, next(m for m in TABLE[name].media if (root / m).is_dir())]
            for part in parts:
                shutil.copytree(root / part, tmp_path / "copy" / part)
        return tmp_path / "copy"

    return make


BAD = [
    ("GQA", 0, {"qry_inst": ...}, "row 0 of '{path}' has no column 'qry_inst'; it has 'tgt_inst', 'qry_text', "),
    ("GQA", 1, {"qry_inst": None}, "row 1 of '{path}': column 'qry_inst' is None, expected a text"),
    ("GQA", 1, {"tgt_text": []}, r"row 1 of '{path}': column 'tgt_text' is \[\], expected at least one candidate"),
    ("GQA", 1, {"tgt_text": ["x", " "]}, "row 1 of '{path}': column 'tgt_text' is .*, expected candidates that are n"),
    ("GQA", 2, {"tgt_text": ["x", None]}, "row 2 of '{path}': column 'tgt_text' is .*, expected a list of texts"),
    (
        "EDIS",
        1,
        {"qry_text": " \n"},
        r"row 1 of '{path}': column 'qry_text' is ' \\n', expected a text that is not emp",
    ),
    ("EDIS", 1, {"tgt_img_path": []}, r"row 1 of '{path}': column 'tgt_img_path' is \[\], expected at least one"),
    ("CIRR", 1, {"tgt_text": ["x"]}, "row 1 of '{path}': 2 candidates in 'tgt_img_path', and 1 in 'tgt_text'"),
    ("K700", 1, {"pos_text": 7}, "row 1 of '{path}': column 'pos_text' is 7, expected a text"),
    ("K700", 2, {"video_id": None}, "row 2 of '{path}': column 'video_id' is None, expected a text or an integer"),
    ("SmthSmthV2", 1, {"neg_text": "ember"}, "row 1 of '{path}': column 'neg_text' is 'ember', expected a list of te"),
    ("MSVD", 1, {"caption": []}, r"row 1 of '{path}': column 'caption' is \[\], expected a text that is not empty"),
    ("MSR-VTT", 0, {"video_id": ...}, "row 0 of '{path}' has no column 'video_id'; it has 'video', 'caption'"),
    ("VATEX", 2, {"enCap": [" "]}, r"row 2 of '{path}': column 'enCap' is \[' '\], expected a text that is not empty"),
    ("Video-MME", 1, {"answer": "E"}, "row 1 of '{path}': column 'answer' is 'E', expected the letter of one of the o"),
    ("Video-MME", 1, {"answer": "AB"}, "column 'answer' is 'AB', expected the letter"),
    ("Video-MME", 1, {"options": []}, r"row 1 of '{path}': column 'options' is \[\], expected at least one option"),
    ("NExTQA", 1, {"answer": 5}, "row 1 of '{path}': column 'answer' is 5, expected the number of one of the options"),
    ("EgoSchema", 0, {"answer": "B"}, "row 0 of '{path}': column 'answer' is 'B', expected the number of one of the o"),
    (
        "EgoSchema",
        0,
        {"option": ["A. a", "B. ."]},
        "row 0 of '{path}': column 'option' is .*, expected candidates that",
    ),
    (
        "ActivityNetQA",
        1,
        {"answer": "maybe"},
        r"column 'answer' is 'maybe', expected the text of one of .*\['yes', 'no",
    ),
    ("QVHighlight", 1, {"query": ...}, "row 0 of '{path}' has no column 'query'; it has 'video_path'"),
    ("MomentSeeker", 1, {"query": ""}, "row 1 of '{path}': column 'query' is '', expected a text that is not empty"),
    ("MomentSeeker", 2, {"positive_frames": []}, "row 2 of '{path}': column 'positive_frames' is .*, expected at leas"),
    ("MomentSeeker", 0, {"negative_frames": None}, "row 0 of .*: column 'negative_frames' is None, expected a list of"),
    (
        "MomentSeeker",
        0,
        {"positive_frames": [{"output_path": None, "start": 1.0}]},
        "row 0 of '{path}': column 'positive_frames', entry 0: column 'output_path' is None, expected a text",
    ),
    (
        "CIRR",
        1,
        {"qry_img_path": "../../../x.png"},
        r"an annotation names '\.\./\.\./\.\./x\.png', which is not inside",
    ),
    ("CIRR", 2, {"tgt_img_path": ["/etc/x.png"] * 2}, "an annotation names '/etc/x.png', which is not inside"),
    ("K700", 1, {"video_id": "a/../../x"}, r"an annotation names 'a/\.\./\.\./x', which is not inside"),
    ("QVHighlight", 1, {"video_path": "/x/.."}, r"an annotation names '\.\.', which is not inside"),
]


@pytest.mark.parametrize(("name", "row", "changes", "message"), BAD, ids=[f"{b[0]}-{next(iter(b[2]))}" for b in BAD])
def test_bad_rows_are_named(name, row, changes, message, copy):
    here = copy(name)
    path = rewrite(name, here, row, **changes)
    with pytest.raises(ValueError, match=f"task {name}: .*" + message.replace("{path}", re.escape(str(path)))):
        opened(name, here)


def test_links_of_media_stay_in_their_folder(copy, tmp_path):
    """An archive may hold links: one that leads elsewhere is named, one to another file of the task is followed."""
    here = copy("CIRR", "K700")
    folders.picture(tmp_path / "secret.png", "ember")
    image, frame = here / "image-tasks/CIRR/q1.jpg", here / FRAMES / "video_cls/K700/amber_1/frame_9.jpg"
    for path, name in ((image, "CIRR"), (frame, "K700")):
        path.rename(path.with_name("moved.jpg"))
        path.symlink_to("moved.jpg")
        opened(name, here)
        path.unlink()
        path.symlink_to(tmp_path / "secret.png")
        with pytest.raises(ValueError, match=f"task {name}: an annotation names '.*/{path.name}', which is not inside"):
            opened(name, here)


def test_ids_of_pages_lead_to_no_other_file(tmp_path):
    folder = tmp_path / "openbmb" / "VisRAG-Ret-Test-PlotQA" / "corpus" / "train-00000-of-00001.parquet"
    folders.write_documents(tmp_path)
    rows = pq.read_table(folder)
    ids = pa.array(["../../../x.png", *rows["corpus-id"].to_pylist()[1:]])
    pq.write_table(rows.set_column(rows.schema.get_field_index("corpus-id"), "corpus-id", ids), folder)
    qrels = folder.parent.parent / "qrels" / folder.name
    judged = pq.read_table(qrels)
    pq.write_table(judged.set_column(1, "corpus-id", pa.array(["b.png"] * 3)).slice(1), qrels)
    with pytest.raises(ValueError, match=r"task VisRAG_PlotQA: the id of a page names '\.\./\.\./\.\./x_\w+\.png'"):
        opened("VisRAG_PlotQA", tmp_path)


def test_bad_files_are_named(copy):
    here = copy("HMDB51", "MSVD", "VATEX")
    path, _ = annotated("HMDB51", here)
    path.write_text('{"video_id": "a"\n')
    with pytest.raises(ValueError, match=f"task HMDB51: '{path}', line 1 is not valid JSON .*download it again"):
        opened("HMDB51", here)
    path.write_bytes(b'{"video_id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1 is not valid JSON"):
        opened("HMDB51", here)
    path.write_text("\n[1]\n")
    with pytest.raises(ValueError, match=rf"row 0 of '{path}' is \[1\], expected an object"):
        opened("HMDB51", here)
    path.write_text("\n")
    with pytest.raises(ValueError, match=f"task HMDB51: {path} has no rows: download it again"):
        opened("HMDB51", here)
    path, _ = annotated("MSVD", here)
    path.write_text("[{]")
    with pytest.raises(ValueError, match=f"task MSVD: '{path}' is not valid JSON .*download it again"):
        opened("MSVD", here)
    path, _ = annotated("VATEX", here)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=f"task VATEX: '{path}' is no parquet file, or corrupt"):
        opened("VATEX", here)
    path.rename(path.with_name("test-00000-of-00002.parquet"))
    with pytest.raises(FileNotFoundError, match="task VATEX: .*lacks test-00001-of-00002.parquet: download the rest"):
        opened("VATEX", here)


def test_moments_need_a_positive_clip(copy):
    here = copy("QVHighlight")
    for clip in ("positive_1", "positive_2"):
        shutil.rmtree(here / FRAMES / "video_mret" / "QVHighlight" / "two" / clip)
    with pytest.raises(ValueError, match=r"row 1 of '.*': video 'two' has no folder positive\* among its clips \['neg"):
        opened("QVHighlight", here)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("OVEN", "ziyjiang/MMEB_Test_Instruct --include 'OVEN/test-*.parquet' --local-dir {root}/ziyjiang/MMEB_Test_"),
        ("K700", "VLM2Vec/Kinetics-700 --include 'data/test.jsonl' --local-dir {root}/VLM2Vec/Kinetics-700` gets them"),
        ("MVBench", "VLM2Vec/MVBench --include 'json/*.json' --local-dir {root}/VLM2Vec/MVBench` gets them"),
        ("YouCook2", "lmms-lab/YouCook2 --include 'data/val-*.parquet' --local-dir {root}/lmms-lab/YouCook2` gets"),
    ],
)
def test_missing_annotations_say_what_to_download_and_where_it_goes(name, command, tmp_path):
    command = re.escape("`hf download --repo-type dataset " + command.replace("{root}", str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=f"task {name}: the annotations are in none of '.*{command}"):
        opened(name, tmp_path)


MISSING = [
    ("CIRR", "image-tasks/CIRR/q1.jpg", "image-tasks/mmeb_v1.tar.gz", "image-tasks"),
    ("EDIS", "image-tasks/EDIS/c.jpg", "image-tasks/mmeb_v1.tar.gz", "image-tasks"),
    ("HMDB51", f"{FRAMES}/video_cls/HMDB51/v (2)", f"{FRAMES}/video_cls.tar.gz", f"{FRAMES}/video_cls"),
    ("NExTQA", f"{FRAMES}/video_qa/NExTQA/3238737531", f"{FRAMES}/video_qa.tar.gz-0*", FRAMES),
    (
        "DiDeMo",
        f"{FRAMES}/video_ret/data/ziyan/video_retrieval/DiDeMo/frames/v.two",
        f"{FRAMES}/video_ret.tar.gz",
        f"{FRAMES}/video_ret",
    ),
    ("Charades-STA", f"{FRAMES}/video_mret/Charades-STA/two/query", f"{FRAMES}/video_mret.tar.gz", FRAMES),
    ("Charades-STA", f"{FRAMES}/video_mret/Charades-STA/two", f"{FRAMES}/video_mret.tar.gz", FRAMES),
    ("MomentSeeker", f"{FRAMES}/video_mret/MomentSeeker/query_img_7.jpg", f"{FRAMES}/video_mret.tar.gz", FRAMES),
    ("MomentSeeker", f"{FRAMES}/video_mret/MomentSeeker/video_frames/three", f"{FRAMES}/video_mret.tar.gz", FRAMES),
]


@pytest.mark.parametrize(("name", "path", "archive", "target"), MISSING, ids=[m[1] for m in MISSING])
def test_missing_media_say_what_to_download_and_where_it_goes(name, path, archive, target, copy):
    here = copy(name)
    gone = here / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    command = (
        f"`hf download --repo-type dataset TIGER-Lab/MMEB-V2 --include '{archive}' --local-dir {here} && "
        f"mkdir -p {here / target} && cat {here / archive} | tar -xzf - -C {here / target}` gets them"
    )
    what = r"task {}: \d+ images or folders of frames are missing \(.*'{}'.*\)\. {}"
    with pytest.raises(FileNotFoundError, match=what.format(name, re.escape(str(gone)), re.escape(command))):
        opened(name, here)


def test_a_folder_without_frames_is_missing(copy):
    here = copy("EgoSchema", "Video-MME")
    folder = here / FRAMES / "video_qa" / "egoschema" / "0a-1"
    (folder / "frame_9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=f"missing .*'{folder}'"):
        opened("EgoSchema", here)
    shutil.rmtree(here / FRAMES / "video_qa")
    looked = f"'{here / FRAMES / 'video_qa'}/Video-MME' or '{here / FRAMES / 'video_qa/video_qa'}/Video-MME'"
    with pytest.raises(FileNotFoundError, match=f"task Video-MME: there is no folder {looked}"):
        opened("Video-MME", here)


# --- other places ----------------------------------------------------------------------------------------------------


def test_annotations_and_media_in_their_other_places(copy):
    here = copy("OVEN", "K700", "MVBench", "VATEX")
    before = {name: opened(name, here) for name in ("OVEN", "K700", "MVBench", "VATEX")}
    seen = {name: list(map(words, [*old.queries, *old.corpus])) for name, old in before.items()}
    (here / "ziyjiang" / "MMEB_Test_Instruct").rename(here / "MMEB_Test_Instruct")
    (here / "image-tasks" / "OVEN").rename(here / "image-tasks" / "kept")
    (here / "image-tasks" / "MMEB").mkdir()
    (here / "image-tasks" / "kept").rename(here / "image-tasks" / "MMEB" / "OVEN")
    data = here / "video-tasks" / "data"
    data.mkdir()
    (here / "VLM2Vec" / "Kinetics-700" / "data" / "test.jsonl").rename(data / "k700.jsonl")
    (here / "VLM2Vec" / "MVBench" / "json").rename(data / "mvbench")
    qa = here / FRAMES / "video_qa"
    (qa / "MVBench").rename(here / "kept")
    (qa / "video_qa").mkdir()
    (here / "kept").rename(qa / "video_qa" / "MVBench")
    folders.jsonl(data / "vatex.jsonl", annotated("VATEX", here)[1])
    shutil.rmtree(here / "VLM2Vec" / "VATEX")
    ret = here / FRAMES / "video_ret"
    (ret / "data" / "ziyan" / "video_retrieval" / "VATEX" / "frames").rename(ret / "VATEX")
    for name, old in before.items():
        new = opened(name, here)
        assert (new.qrels, new.candidates, new.corpus_ids) == (old.qrels, old.candidates, old.corpus_ids)
        assert list(map(words, [*new.queries, *new.corpus])) == seen[name]


def test_json_files_of_lines(copy):
    here = copy("MSVD")
    path, rows = annotated("MSVD", here)
    folders.jsonl(path, rows)
    assert opened("MSVD", here).queries[0] == {"text": " amber  basalt\n"}


def test_image_annotations_beside_the_images(copy):
    here = copy("CIRR")
    path, rows = annotated("CIRR", here)
    path.unlink()
    folders.parquet(here / "image-tasks" / "CIRR", rows)
    assert len(opened("CIRR", here).queries) == 3


def test_command_that_lists_what_is_lacking(root, tmp_path, capsys):
    mmeb_main([str(root), "OVEN", "MVBench", "QVHighlight"])
    assert capsys.readouterr().out == "# 3 of 3 tasks have their annotations and folders of images or frames\n"
    here = tmp_path / "here"
    parts = ["ziyjiang", "lmms-lab", "image-tasks", *(f"{FRAMES}/video_{kind}" for kind in ("cls", "qa", "ret"))]
    parts += [f"VLM2Vec/{path.name}" for path in (root / "VLM2Vec").iterdir() if path.name not in OOD.values()]
    parts.remove("VLM2Vec/MVBench")
    for part in parts:
        (here / part).parent.mkdir(parents=True, exist_ok=True)
        (here / part).symlink_to(root / part)
    for subset in MVBENCH[:-1]:
        folders.json_list(here / "VLM2Vec" / "MVBench" / "json" / f"{subset}.json", [])
    mmeb_main([str(here)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"hf download --repo-type dataset VLM2Vec/MVBench --include 'json/*.json' --local-dir {here}/VLM2Vec/MVBench"
    )
    target = here / FRAMES
    assert lines[1] == (  # once for its three tasks
        f"hf download --repo-type dataset TIGER-Lab/MMEB-V2 --include '{FRAMES}/video_mret.tar.gz' "
        f"--local-dir {here} && mkdir -p {target} && cat {target}/video_mret.tar.gz | tar -xzf - -C {target}"
    )
    left_out = [*(f"vidore/{stem}" for stem in (*V1.values(), *V2.values()))]
    left_out += [f"openbmb/VisRAG-Ret-Test-{name}" for name in VISRAG]
    left_out += [f"VLM2Vec/{stem}" for stem in OOD.values()]
    assert lines[2:-1] == [f"hf download --repo-type dataset {name} --local-dir {here}/{name}" for name in left_out]
    assert lines[-1].startswith("# 50 of 78 tasks")
    with pytest.raises(SystemExit, match="2"):
        mmeb_main([str(here), "OVENS"])
    assert "unknown tasks 'OVENS'" in capsys.readouterr().err


# --- config ----------------------------------------------------------------------------------------------------------


def config(root, arg="", **changes):
    made = mmeb_v2.get_config(arg)
    made.path = str(root)
    made.bootstrap.samples = 50
    made.update(changes)
    return made


def ran(settings, names, encoder=None):
    """The summary of some of the tasks that the config asks for."""
    benchmarks = [task for task in mmeb_v2.get_benchmarks(settings) if task.name in names]
    return evaluate(settings, benchmarks, encoder or Watcher(), mmeb_v2.get_groups(settings))[0]


def test_tasks_are_opened_one_by_one(tmp_path):
    deferred = mmeb_v2.get_benchmarks(config(tmp_path))  # nothing is there yet
    assert [(type(task), task.name) for task in deferred] == [(Deferred, task.name) for task in TASKS]
    with pytest.raises(FileNotFoundError, match="task ImageNet-1K: the annotations are in none of"):
        deferred[0].load()
    chosen = mmeb_v2.get_benchmarks(config(tmp_path, modality="video, visdoc", tasks="K700,VisRAG_ChartQA"))
    assert [task.name for task in chosen] == ["K700", "VisRAG_ChartQA"]
    with pytest.raises(ValueError, match="config.path is not set: it is the MMEB-V2 folder. `hf download"):
        mmeb_v2.get_benchmarks(config(""))
    with pytest.raises(FileNotFoundError, match="there is no folder '.*/x': config.path is the MMEB-V2 folder"):
        mmeb_v2.get_benchmarks(config(tmp_path / "x"))
    with pytest.raises(ValueError, match="the argument is 'FOLDER'"):
        mmeb_v2.get_config("FOLDER")


def test_missing_tasks_are_reported_as_missing(root, tmp_path):
    settings = config(root, output=str(tmp_path))
    summary = ran(settings, ("CIRR", "MSCOCO", "K700", "VisRAG_ChartQA"))
    groups = {group.name: group for group in summary.groups}
    assert len(groups) == 17
    everything = groups["MMEB-V2"]
    assert everything.benchmarks == {"CIRR": "hit@1", "MSCOCO": "hit@1", "K700": "hit@1", "VisRAG_ChartQA": "ndcg@5"}
    assert len(everything.missing) == 74
    values = {benchmark.name: benchmark.estimates["late"] for benchmark in summary.benchmarks}
    own = [values[name][metric].mean for name, metric in everything.benchmarks.items()]
    assert everything.estimates["late"].mean == pytest.approx(np.mean(own), abs=1e-12)
    assert groups["MMEB-V2, images"].estimates["late"].mean == pytest.approx(2 / 3, abs=1e-12)
    assert groups["MMEB-V2, images, Classification"].estimates == {}
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "### MMEB-V2: 4 of 78 benchmarks" in text and "- missing: ImageNet-1K, N24News" in text
    assert "### MMEB-V2, videos, QA: 0 of 5 benchmarks" in text


def test_a_task_that_fails_does_not_stop_the_others(copy, tmp_path):
    here = copy("CIRR", "EDIS")
    (here / "image-tasks" / "CIRR" / "b.png").unlink()
    summary = ran(config(here, output=str(tmp_path / "out"), modality="image"), ("CIRR", "EDIS", "OVEN"))
    assert [benchmark.name for benchmark in summary.benchmarks] == ["EDIS"]
    assert [failure.name for failure in summary.failed] == ["CIRR", "OVEN"]
    assert "1 images or folders of frames are missing" in summary.failed[0].error
    assert "ziyjiang/MMEB_Test_Instruct --include 'OVEN/test-*.parquet'" in summary.failed[1].error
    groups = {group.name: group for group in summary.groups}
    assert {"CIRR", "OVEN"} < set(groups["MMEB-V2, images"].missing) and "MMEB-V2, videos" not in groups


@pytest.mark.slow
def test_command_with_a_checkpoint(root, tmp_path, checkpoint):
    options = {"path": root, "model": checkpoint, "output": tmp_path, "bootstrap.samples": 50}
    options["tasks"] = "CIRR,MSR-VTT,VisRAG_ChartQA"
    command = [sys.executable, "-m", "eval.run", "--config=configs/mmeb_v2.py:complete"]
    command += [f"--config.{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [entry["name"] for entry in stored["benchmarks"]] == ["CIRR", "MSR-VTT", "VisRAG_ChartQA"]
    whole = json.loads((tmp_path / "leaderboard" / "pooled" / f"{checkpoint.name}.json").read_text())
    (entry,) = [entry for entry in stored["benchmarks"] if entry["name"] == "MSR-VTT"]
    assert whole["metrics"]["video"]["MSR-VTT"]["hit@1"] == entry["rows"]["pooled"]["hit@1"]["mean"]
    assert len(whole["metrics"]["visdoc"]["VisRAG_ChartQA"]) == 26
    assert str(tmp_path / "leaderboard" / "hybrid") in done.stdout


def test_groups_of_chosen_tasks():
    names = [group.name for group in mmeb_v2.get_groups(config("x", tasks="K700"))]
    assert names == ["MMEB-V2", "MMEB-V2, videos", "MMEB-V2, videos, Classification"]


def test_published_figures(root, tmp_path):
    figures = {}
    for entry in published.load():
        if entry.model == "Qwen3-VL-Embedding-8B" and "hit@1" in entry.figures:
            kind = "reproduction" if "a reproduction" in entry.source else "leaderboard"
            figures[kind] = {**entry.figures["hit@1"], **entry.figures["ndcg@5"]}

    def averages(values):
        groups = [[t.name for t in TASKS if t.modality == m] for m in table.MODALITIES]
        return [round(100 * float(np.mean([values[name] for name in names])), 2) for names in (TABLE, *groups)]

    assert averages(figures["reproduction"]) == [77.82, 80.12, 67.62, 82.04]
    assert averages(figures["leaderboard"]) == [77.82, 80.12, 67.15, 82.36]
    settings = config(root, model="Qwen/Qwen3-VL-Embedding-2B", output=str(tmp_path))
    entries = [entry for entry in published.load() if entry.model in ("Qwen3-VL-Embedding-2B", "SMART")]
    assert {group.name: list(group.published) for group in mmeb_v2.get_groups(settings)}["MMEB-V2"] == entries
    assert all(not group.published for group in mmeb_v2.get_groups(config(root, max_queries=3, published="all")))


def test_a_claim_stands_below_the_table_of_its_group_alone():
    entry = published.Published("SMART", "s", datetime.date(2026, 1, 2), claims={"both": "it is better"})
    made = Benchmark("x", ["amber"], ["0"], ["amber", "delta"], ["a", "d"], {"0": {"a": 1}})
    results = [run_benchmark(Watcher(), made, methods=("late",), metrics=("hit@1",))]
    report = summarise(results, groups=[Group(name, {"x": "hit@1"}, [entry]) for name in ("both", "other")])
    assert [[found.claim for found in group.published] for group in report.groups] == [["it is better"], []]
    text = markdown(report)
    assert text.count("- SMART: s (2026-01-02) states: it is better") == 1 and "SMART, published" not in text


def test_published_averages_of_several_metrics():
    entry = published.Published("m", "s", datetime.date(2026, 1, 2), averages={"hit@1, ndcg@5": {"both": 0.732}})
    made = [
        Benchmark(n, ["amber", "delta"], ["0", "1"], ["amber", "delta"], ["a", "d"], {"0": {"a": 1}, "1": {"d": 1}})
        for n in ("x", "y")
    ]
    results = [run_benchmark(Watcher(), b, methods=("late",), metrics=("hit@1", "ndcg@5")) for b in made]
    (group,) = summarise(results, groups=[Group("both", {"x": "hit@1", "y": "ndcg@5"}, [entry])]).groups
    assert [found.average for found in group.published] == [0.732]
    (group,) = summarise(results[:1], groups=[Group("both", {"x": "hit@1", "y": "ndcg@5"}, [entry])]).groups
    assert group.published == []  # that of both says nothing about one


# --- the leaderboard's files -----------------------------------------------------------------------------------------


@pytest.mark.compiles
def test_files_of_the_leaderboard(root, tmp_path):
    settings = config(root, "complete", model="Qwen/Qwen3-VL-Embedding-2B", output=str(tmp_path / "out"))
    summary = ran(settings, ("CIRR", "MSVD", "ViDoRe_esg_reports_v2_multilingual", "VisRAG_ChartQA"))
    paths = mmeb_v2.write_extra(summary, tmp_path / "out")
    here = tmp_path / "out" / "leaderboard"
    assert paths == {
        "leaderboard pooled": here / "pooled" / "Qwen3-VL-Embedding-2B.json",
        "leaderboard late": here / "late" / "Qwen3-VL-Embedding-2B-late.json",
        "leaderboard hybrid": here / "hybrid" / "Qwen3-VL-Embedding-2B-hybrid.json",
    }
    whole = json.loads(paths["leaderboard late"].read_text())
    assert list(whole["metadata"]) == [
        *("model_name", "model_backbone", "model_size", "embedding_dimension", "max_length_tokens"),
        *("model_release_date", "data_source", "url", "report_generated_date"),
    ]
    assert whole["metadata"]["model_name"] == "Qwen3-VL-Embedding-2B-late"
    assert whole["metadata"]["url"] == "https://huggingface.co/Qwen/Qwen3-VL-Embedding-2B"
    assert whole["metadata"]["model_size"] is None
    metrics = whole["metrics"]
    assert {modality: len(tasks) for modality, tasks in metrics.items()} == {"image": 36, "video": 18, "visdoc": 24}
    assert metrics["image"]["RefCOCO"] == metrics["visdoc"]["MMLongBench-page-fixed"] == "FILE_N/A"
    assert sum(isinstance(scores, dict) for tasks in metrics.values() for scores in tasks.values()) == 4
    order = ("hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr")
    keys = [f"{name}@{k}" for name in order for k in (1, 5, 10)]
    scores = metrics["visdoc"]["ViDoRe_esg_reports_v2_multilingual"]
    assert list(scores) == [*keys, "num_pred", "num_data"]
    assert json.loads((here / "late/visdoc/ViDoRe_esg_reports_v2_multilingual_score.json").read_text()) == scores
    # By hand: pages of grades 1 and 2 at ranks 1 and 2, then one relevant page of two at rank 1 and one at rank 2.
    assert (scores["num_pred"], scores["num_data"]) == (4, 4)
    assert scores["ndcg_linear@5"] == pytest.approx((1 + (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))) / 2, abs=1e-9)
    assert scores["ndcg_exponential@1"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-9)
    assert [scores[f"precision@{k}"] for k in (1, 5, 10)] == pytest.approx([1, 2 / 5, 2 / 10], abs=1e-9)
    assert [scores[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 2, 1, 1], abs=1e-9)
    assert [scores[f"f1@{k}"] for k in (1, 5, 10)] == pytest.approx([2 / 3, 4 / 7, 1 / 3], abs=1e-6)
    assert [scores[f"map@{k}"] for k in (1, 5, 10)] == pytest.approx([1, 1, 1], abs=1e-6)  # ours at 1: 1 / 2
    assert metrics["image"]["CIRR"]["hit@1"] == pytest.approx(2 / 3, abs=1e-12)
    assert metrics["video"]["MSVD"]["mrr@5"] == pytest.approx((1 + 1 + 1 / 2) / 3, abs=1e-12)


def test_map_of_the_leaderboard_against_its_definition():
    rng = np.random.default_rng(3)
    ids = [f"d{i}" for i in range(30)]
    relevant = {f"q{q}": rng.choice(ids, size, replace=False).tolist() for q, size in enumerate((1, 3, 7, 12, 20))}
    texts = [" ".join(rng.choice(vidore_folders.WORDS, 3)) for _ in ids]
    benchmark = Benchmark(
        "ViDoSeek-doc",
        [" ".join(rng.choice(vidore_folders.WORDS, 2)) for _ in relevant],
        list(relevant),
        LazyItems(30, lambda i: {"text": texts[i]}),
        ids,
        {query: dict.fromkeys(names, 1) for query, names in relevant.items()},
    )
    result = run_benchmark(Watcher(), benchmark, methods=("late",), metrics=leaderboard.METRICS)
    scores = leaderboard.task_scores(summarise([result], samples=10).benchmarks[0], "late")
    found = {k: ([], []) for k in (1, 5, 10)}
    for number, names in enumerate(relevant.values()):
        tokens = Watcher().tokens(benchmark.queries[number])
        score = [(tokens @ Watcher().tokens(text).T).max(axis=1).mean() for text in texts]
        ranked = sorted(
            ids, key=lambda d, score=score, number=number: (-score[int(d[1:])], tie("ViDoSeek-doc", number, d))
        )
        for k, (average, f1) in found.items():
            hits = [d in names for d in ranked[:k]]
            at = [sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]
            average.append(sum(at) / min(len(names), k))
            p, r = sum(hits) / k, sum(hits) / len(names)
            f1.append(2 * p * r / (p + r) if p + r else 0.0)
    for k, (average, f1) in found.items():
        assert scores[f"map@{k}"] == pytest.approx(np.mean(average), abs=1e-6)
        assert scores[f"f1@{k}"] == pytest.approx(np.mean(f1), abs=1e-6)


def test_the_leaderboard_has_what_was_measured(root, tmp_path):
    summary = ran(config(root, output=str(tmp_path), tasks="CIRR"), ("CIRR",))
    (path, *_) = mmeb_v2.write_extra(summary, tmp_path).values()
    scores = json.loads(path.read_text())["metrics"]["image"]["CIRR"]
    assert list(scores) == ["hit@1", "hit@10", "ndcg_linear@5", "ndcg_linear@10", "num_pred", "num_data"]
    sample = ran(config(root, output=str(tmp_path), tasks="CIRR", max_queries=2), ("CIRR",))
    assert mmeb_v2.write_extra(sample, tmp_path / "other") == {} and not (tmp_path / "other").exists()
