"""A small MMEB-V2 folder: every task in the layout of its files, with images and frames whose words can be read.

Written from the public layouts, not from `eval.benchmarks.mmeb_v2.table`, so that the two check each other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from smart_jax.inputs.image import open_rgb
from smart_jax.inputs.item import parse_item
from tests.vidore_folders import CELL, WORDS, Reader, images, write_v1, write_v2

TO_TEXT = (
    *("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365", "ImageNet-A", "ImageNet-R"),
    *("ObjectNet", "Country211", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    *("ScienceQA", "VizWiz", "GQA", "TextVQA", "VisualNews_i2t", "MSCOCO_i2t"),
)
TO_IMAGE = ("VisDial", "VisualNews_t2i", "MSCOCO_t2i", "WebQA", "Wiki-SS-NQ", "EDIS")
IMAGE_TO_IMAGE = (
    *("CIRR", "NIGHTS", "FashionIQ", "OVEN", "MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
)
V1 = {
    **{"ViDoRe_arxivqa": "arxivqa_test_subsampled_beir", "ViDoRe_docvqa": "docvqa_test_subsampled_beir"},
    **{"ViDoRe_infovqa": "infovqa_test_subsampled_beir", "ViDoRe_tabfquad": "tabfquad_test_subsampled_beir"},
    **{"ViDoRe_tatdqa": "tatdqa_test_beir", "ViDoRe_shiftproject": "shiftproject_test_beir"},
    "ViDoRe_syntheticDocQA_artificial_intelligence": "syntheticDocQA_artificial_intelligence_test_beir",
    "ViDoRe_syntheticDocQA_energy": "syntheticDocQA_energy_test_beir",
    "ViDoRe_syntheticDocQA_government_reports": "syntheticDocQA_government_reports_test_beir",
    "ViDoRe_syntheticDocQA_healthcare_industry": "syntheticDocQA_healthcare_industry_test_beir",
}
V2 = {
    "ViDoRe_esg_reports_human_labeled_v2": "esg_reports_human_labeled_v2",
    "ViDoRe_biomedical_lectures_v2_multilingual": "biomedical_lectures_v2",
    "ViDoRe_economics_reports_v2_multilingual": "economics_reports_v2",
    "ViDoRe_esg_reports_v2_multilingual": "esg_reports_v2",
}
VISRAG = ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
OOD = {
    **{"ViDoSeek-page-fixed": "ViDoSeek-page-fixed", "ViDoSeek-doc": "ViDoSeek"},
    **{"MMLongBench-page-fixed": "MMLongBench-page-fixed", "MMLongBench-doc": "MMLongBench-doc"},
}
MVBENCH = (
    *("episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action"),
    *("unexpected_action", "object_existence", "object_interaction", "object_shuffle", "moving_direction"),
    *("action_localization", "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change"),
    *("fine_grained_pose", "character_order", "egocentric_navigation", "counterfactual_inference"),
)
PAGE = "a paper (2023), " + "x" * 60 + ".v2.jpg"  # a VisRAG page whose file has a shortened name
SHORT_PAGE = "a paper (2023), xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx_a19fd31a.jpg"


class Watcher(Reader):
    """Reads frames, too; the words of a video are those of its frames, in order."""

    def tokens(self, item: Any) -> np.ndarray:
        parsed = parse_item(item)
        frames = [frame for video in parsed.videos for frame in video]
        words = [word for image in (*frames, *parsed.images) for word in words_of(image)]
        return super().tokens({"text": " ".join([*words, *parsed.texts]) or "?"})


def words_of(image: Any) -> list[str]:
    """Returns the words of a picture, JPEG or not."""
    row = np.asarray(open_rgb(image), int)[8, CELL // 2 :: CELL]
    return [WORDS[(red + 20) // 40] for red, green, _ in row.tolist() if green < 60]


def picture(path: Path, words: str) -> None:
    """A file of 64 x 64 pixels; the columns of cells are its words."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    for at, word in enumerate(words.split()):
        pixels[:, at * CELL : (at + 1) * CELL] = (40 * WORDS.index(word), 10, 90)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def frames(folder: Path, *words: str, suffix: str = ".jpg") -> None:
    """A video's folder, one frame for each of the words; the second frame's number has one digit more."""
    for at, frame in enumerate(words):
        picture(folder / f"frame_{9 + at}{suffix}", frame)
    (folder / "info.txt").write_text("no frame")


def parquet(path: Path, rows: list[dict[str, Any]], split: str = "test") -> None:
    """The only shard of a split in the folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path / f"{split}-00000-of-00001.parquet")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def json_list(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


# --- images ----------------------------------------------------------------------------------------------------------


def pair_rows(name: str) -> list[dict[str, Any]]:
    """Three rows of an image task; images are in a folder of its name."""
    instruction = f"<|image_1|>\nRepresent {name}: \n"
    paths = [f"{name}/{file}" for file in ("q0.jpg", "q1.jpg", "q2.png")]
    row: dict[str, Any] = {"qry_inst": instruction, "tgt_inst": "<|image_1|> Represent the given image."}
    a, b, c = f"{name}/a.png", f"{name}/b.png", f"{name}/c.jpg"
    if name in TO_TEXT:
        texts = [["amber", "basalt", "cedar"], ["delta", "amber", "delta"], ["ember\tfjord", "amber"]]
        asked = ["", " what  is\nit? ", "where?"]
        return [
            row | {"qry_text": t, "qry_img_path": p, "tgt_text": x, "tgt_img_path": [""] * len(x)}
            for t, p, x in zip(asked, paths, texts, strict=True)
        ]
    if name in TO_IMAGE:
        targets = [([a, b], ["", ""]), ([c, a], ["  ember ", ""]), ([b, c], [" ", " "])]
        asked = [" amber\n\n basalt ", "delta ember", "fjord delta"]
        paths = [""] * 3
    else:
        targets = [([a, b], ["", ""]), ([a, a], ['delta "ember"', " amber "]), ([a, b], [" ", ""])]
        asked = ["", " keep  this\n", "fjord"]
    return [
        row | {"qry_text": t, "qry_img_path": p, "tgt_img_path": x, "tgt_text": y}
        for t, p, (x, y) in zip(asked, paths, targets, strict=True)
    ]


def write_pairs(root: Path, name: str) -> None:
    parquet(root / "ziyjiang" / "MMEB_Test_Instruct" / name, pair_rows(name))
    folder = root / "image-tasks" / name
    shown = {"q0.jpg": "amber", "q1.jpg": "basalt amber", "q2.png": "fjord ember"}
    if name in IMAGE_TO_IMAGE:
        shown = {"q0.jpg": "amber", "q1.jpg": "delta", "q2.png": "cedar"}
    candidates = {"a.png": "amber basalt", "b.png": "cedar", "c.jpg": "delta"}
    for file, words in (shown | ({} if name in TO_TEXT else candidates)).items():
        picture(folder / file, words)


# --- videos ----------------------------------------------------------------------------------------------------------


def write_classes(root: Path) -> None:
    """A class that is in no list of classes, and one that is, twice."""
    known = {"K700": "archery", "HMDB51": "brush_hair", "UCF101": "Archery", "Breakfast": "tea"}
    for name, label in known.items():
        repository = "Kinetics-700" if name == "K700" else name
        rows = [
            {"video_id": "amber_1", "pos_text": "amber", "video_path": "x/amber_1.mp4"},
            {"video_id": "v (2)", "pos_text": label, "video_path": "x/v (2).mp4"},
            {"video_id": "cedar.3", "pos_text": label, "video_path": "x/cedar.3.mp4"},
        ]
        jsonl(root / "VLM2Vec" / repository / "data" / "test.jsonl", rows)
        folder = root / "video-tasks" / "frames" / "video_cls" / name
        frames(folder / "amber_1", "amber", "amber basalt")
        frames(folder / "v (2)", "basalt")
        frames(folder / "cedar.3", "cedar", "cedar", "delta")
    rows = [
        {"video_id": 74225, "pos_text": "amber", "neg_text": ["basalt", "amber", "cedar"]},
        {"video_id": 9, "pos_text": "delta", "neg_text": ["ember", "delta"]},
    ]
    jsonl(root / "VLM2Vec" / "SmthSmthV2" / "data" / "test.jsonl", rows)
    for video, words in (("74225", "amber"), ("9", "ember")):
        frames(root / "video-tasks" / "frames" / "video_cls" / "SSv2" / video, words)


def write_questions(root: Path) -> None:
    """Two rows each; MVBench one of each subset."""
    here = root / "video-tasks" / "frames" / "video_qa"
    question = "What is seen?"
    for at, subset in enumerate(MVBENCH):
        options = ["delta", "amber", "amber"] if at == 0 else ["cedar", "basalt"]
        row = {"video": f"clip{at}.mp4", "question": question, "candidates": options, "answer": options[-1]}
        json_list(root / "VLM2Vec" / "MVBench" / "json" / f"{subset}.json", [row])
        frames(here / "MVBench" / subset / f"clip{at}.mp4", "amber" if at == 0 else "cedar", "ember", suffix=".jpeg")
    rows: list[dict[str, Any]] = [
        {"videoID": "v-1", "options": ["A. Amber.", "B. amber", "C. fjord...", "D. no"], "answer": "B"},
        {"videoID": "v-1", "options": ["A. delta", "B. cedar. ", "C. fjord", "D. no"], "answer": "D"},
    ]
    facts = {"question": question, "question_id": "1-1", "domain": "d", "sub_category": "s"}
    parquet(root / "VLM2Vec" / "Video-MME" / "videomme", [facts | row for row in rows])
    frames(here / "Video-MME" / "v-1", "amber", "cedar")
    rows = [
        {"video": 3238737531, "a0": "fjord", "a1": "amber ", "a2": "basalt", "a3": "x", "a4": "y ", "answer": 1},
        {"video": 3238737531, "a0": "amber", "a1": "z", "a2": "basalt", "a3": "x", "a4": "y", "answer": 4},
    ]
    parquet(
        root / "VLM2Vec" / "NExTQA" / "MC", [row | {"question": "what now", "qid": 1, "type": "CW"} for row in rows]
    )
    frames(here / "NExTQA" / "3238737531", "amber")
    rows = [
        {"video_idx": "0a-1", "option": ["A. delta", "B. C. amber."], "answer": "1"},
        {"video_idx": "0a-1", "option": ["A. amber", "B. cedar"], "answer": "1"},
    ]
    parquet(
        root / "VLM2Vec" / "EgoSchema" / "Subset", [row | {"question": question, "question_idx": 3} for row in rows]
    )
    frames(here / "egoschema" / "0a-1", "amber")
    rows = [{"video_name": "1QI", "answer": answer, "question_id": "q"} for answer in ("no", "yes")]
    parquet(root / "VLM2Vec" / "ActivityNetQA" / "data", [row | {"question": "is it amber"} for row in rows])
    frames(here / "ActivityNetQA" / "v_1QI", "amber")


def write_captions(root: Path) -> None:
    """Three rows each, two of one video."""
    here = root / "video-tasks" / "frames" / "video_ret" / "data" / "ziyan" / "video_retrieval"
    texts, names = [" amber  basalt\n", "cedar", "delta"], ["v one", "v.two", "v one"]
    both = list(zip(names, texts, strict=True))
    rows = [{"video": f"train/{name}.mp4", "caption": text} for name, text in both]
    json_list(root / "VLM2Vec" / "DiDeMo" / "didemo_test.json", rows)
    rows = [{"video_id": name, "video": f"{name}.mp4", "caption": text} for name, text in both]
    json_list(root / "VLM2Vec" / "MSR-VTT" / "msrvtt_test_1k.json", rows)
    rows = [{"video_id": name, "video": f"{name}.avi", "caption": [text, "fjord"]} for name, text in both]
    json_list(root / "VLM2Vec" / "MSVD" / "msvd_test.json", rows)
    rows = [{"videoID": name, "enCap": [text, "fjord"]} for name, text in both]
    parquet(root / "VLM2Vec" / "VATEX" / "vatex_test", rows)
    rows = [{"id": name, "video_path": f"x/{name}.mp4", "sentence": text} for name, text in both]
    parquet(root / "lmms-lab" / "YouCook2" / "data", rows, "val")
    for name in ("DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2"):
        frames(here / name / "frames" / "v one", "amber", "basalt")
        frames(here / name / "frames" / "v.two", "cedar", "delta")


def write_moments(root: Path) -> None:
    """Two moments of videos of their own; the second has two positive clips, and more frames than are taken."""
    here = root / "video-tasks" / "frames" / "video_mret"
    for name in ("QVHighlight", "Charades-STA"):
        rows = [
            {"query": "amber ", "video_path": f"/data/{name}/one.v1.mp4"},
            {"query": "delta", "video_path": "two.mp4"},
        ]
        parquet(root / "VLM2Vec" / name / "data", rows)
        one, two = here / name / "one.v1", here / name / "two"
        frames(one / "query", "amber", "cedar")
        frames(one / "positive_0", "amber")
        frames(one / "negative_10", "fjord")
        frames(one / "negative_2", "cedar")
        picture(one / "poster.jpg", "fjord")
        frames(two / "query", *["basalt"] * 70)
        frames(two / "positive_1", *["ember"] * 9)
        frames(two / "positive_2", "delta")
        frames(two / "negative_0", "delta", "basalt")
    rows = [
        {
            "query": "amber",
            "input_frames": "",
            "positive_frames": [{"output_path": "a/b/one.mp4", "start": 1.5}],
            "negative_frames": [{"output_path": "a/two.mp4", "start": 2.5}],
        },
        {
            "query": "like this",
            "input_frames": "img_7.jpg",
            "positive_frames": [{"output_path": "a/two.mp4", "start": 2.5}],
            "negative_frames": [{"output_path": "three.mp4", "start": 0.5}, {"output_path": "a/two.mp4", "start": 2.5}],
        },
        {
            "query": "after this",
            "input_frames": "long/movie.mp4",
            "positive_frames": [
                {"output_path": "three.mp4", "start": 0.5},
                {"output_path": "a/b/one.mp4", "start": 1.5},
            ],
            "negative_frames": [{"output_path": "a/two.mp4", "start": 2.5}],
        },
    ]
    parquet(root / "VLM2Vec" / "MomentSeeker" / "data", rows)
    seeker = here / "MomentSeeker"
    picture(seeker / "query_img_7.jpg", "cedar")
    for name, words in (("a_b_one", "amber"), ("a_two", "cedar"), ("three", "delta"), ("long_movie", "cedar")):
        frames(seeker / "video_frames" / name, words)


# --- visual documents ------------------------------------------------------------------------------------------------


def write_documents(root: Path) -> None:
    for stem in V1.values():
        write_v1(root / "vidore" / stem)
    for stem in V2.values():
        write_v2(root / "vidore" / stem)
    for stem in OOD.values():
        write_v1(root / "VLM2Vec" / stem)
    pages = [PAGE, "b.png", "c.png"]
    parts = {
        "queries": {"query-id": pa.array(["q-1", "q-2"]), "query": pa.array(["amber?  basalt", "cedar"])},
        "corpus": {"corpus-id": pa.array(pages), "image": images({1: "fjord", 2: "cedar", 3: "amber"})},
        "qrels": {
            "query-id": pa.array(["q-1", "q-2", "q-2"]),
            "corpus-id": pa.array([PAGE, "b.png", "c.png"]),
            "score": pa.array([1, 1, 1]),
        },
    }
    for name in VISRAG:
        for part, columns in parts.items():
            folder = root / "openbmb" / f"VisRAG-Ret-Test-{name}" / part
            folder.mkdir(parents=True)
            pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")
        picture(root / "visdoc-tasks" / "images" / f"VisRAG_{name}" / SHORT_PAGE, "basalt")


def write_all(root: Path) -> Path:
    """All 78 tasks."""
    for name in (*TO_TEXT, *TO_IMAGE, *IMAGE_TO_IMAGE):
        write_pairs(root, name)
    for write in (write_classes, write_questions, write_captions, write_moments, write_documents):
        write(root)
    return root
