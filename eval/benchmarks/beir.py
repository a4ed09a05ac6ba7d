"""Benchmarks on disk.

A folder written by `save`:
  benchmark.json            name, instructions and the version of this format
  queries.parquet, corpus.parquet   id, texts, images (encoded files), instruction; the corpus also page_text (BM25)
  qrels.tsv                 query-id, corpus-id, score, with that header
  candidates.jsonl          {"id": query, "candidates": [document, ...]}, only for local ranking

`load` also opens a BEIR folder, unpacked from its zip or as on the hub:
  queries.jsonl, corpus.jsonl   also .jsonl.gz: _id or id; title, text, image = a path inside the folder, page_text =
                            for BM25 only; or folders queries and corpus of parquet files with _id or id, title, text
  qrels/SPLIT.tsv           query-id, corpus-id, score; or with these names qrels/SPLIT.jsonl, qrels/SPLIT-*.parquet (or
                            in a folder data or default); or qrels.tsv or qrels.jsonl, which are of the split test
There, queries without a relevant document in the split are left out, and a document without content is the text NULL.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from eval.benchmarks.judgements import QRELS_HEADER, SPLIT, read_qrels
from eval.benchmarks.lazy_items import LazyItems, batches
from eval.benchmarks.raw_records import read_columns, read_json_lines
from smart_jax.files import files_fingerprint, path_inside, read_json, shown
from smart_jax.inputs import ImageLike, open_rgb, parse_item
from smart_jax.tables import Records, Table, shards, splits

VERSION = 1
RECORDS_AT_ONCE = 32  # of a row group: what is read to get one item
ITEM_FIELDS = [
    ("id", pa.string()),
    ("texts", pa.list_(pa.string())),
    ("images", pa.list_(pa.binary())),
    ("instruction", pa.string()),
]
ITEM_COLUMNS = [name for name, _ in ITEM_FIELDS[1:]]
QUERY_SCHEMA = pa.schema(ITEM_FIELDS)
CORPUS_SCHEMA = pa.schema([*ITEM_FIELDS, ("page_text", pa.string())])
EMPTY = "NULL"  # the text of a document without content, as in the reference of SMART (arXiv:2605.24938)

_logger = logging.getLogger(__name__)


def save(fields: Mapping[str, Any], folder: str | Path) -> None:
    """Writes the fields of a `Benchmark`, by name, to a new or empty folder; images are encoded one by one.

    Raises:
      FileExistsError: the folder is not empty.
      ValueError, TypeError, OSError: an item cannot be stored, or an id has a tab or a line break in it; the message
        names it.
    """
    folder = Path(folder)
    if wrong := [i for i in (*fields["query_ids"], *fields["corpus_ids"]) if "\t" in i or i.splitlines() != [i]]:
        raise ValueError(
            f"benchmark {fields['name']}: ids with a tab or a line break cannot be stored, such as {wrong[0]!r}: "
            "rename them"
        )
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it or save benchmark {fields['name']} elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    _write_items(folder / "queries.parquet", QUERY_SCHEMA, fields["query_ids"], fields["queries"], None)
    _write_items(folder / "corpus.parquet", CORPUS_SCHEMA, fields["corpus_ids"], fields["corpus"], fields["texts"])
    with open(folder / "qrels.tsv", "w", encoding="utf-8", newline="") as file:
        lines = [[q, d, int(grade)] for q, grades in fields["qrels"].items() for d, grade in grades.items()]
        csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None).writerows(
            [QRELS_HEADER, *lines]
        )
    if fields["candidates"] is not None:
        records = ({"id": q, "candidates": list(names)} for q, names in fields["candidates"].items())
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / "candidates.jsonl").write_text(text, encoding="utf-8")
    header = {
        "version": VERSION,
        "name": fields["name"],
        "instruction": fields["instruction"],
        "document_instruction": fields["document_instruction"],
    }
    (folder / "benchmark.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, *, name: str | None = None, split: str = SPLIT) -> dict[str, Any]:
    """Returns the fields of the `Benchmark` in a folder of `save`, or in a BEIR folder; items are read when used.

    Args:
      folder: as in this module's docstring.
      name: replaces the stored one (BEIR folders store none: the folder's name is the default).
      split: of a BEIR folder's judgements.

    Raises:
      FileNotFoundError: the folder, one of its files, or the split is missing; the message names the splits there are.
      ValueError: a file is corrupt, of another version, or contradicts another.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no benchmark folder {folder}")
    header = _read_header(folder)
    query_ids, queries, _ = _read_items(folder, "queries")
    corpus_ids, corpus, texts = _read_items(folder, "corpus")
    qrels = read_qrels(folder, split)
    if header is None:
        judged = [i for i, q in enumerate(query_ids) if any(grade > 0 for grade in qrels.get(q, {}).values())]
        queries, query_ids = queries.take(judged), [query_ids[i] for i in judged]
        qrels = {q: qrels[q] for q in query_ids}
        header = {}
    return dict(
        name=name or header.get("name") or folder.resolve().name,
        queries=queries,
        query_ids=query_ids,
        corpus=corpus,
        corpus_ids=corpus_ids,
        qrels=qrels,
        candidates=_read_candidates(folder),
        texts=texts,
        instruction=header.get("instruction"),
        document_instruction=header.get("document_instruction"),
    )


def _write_items(
    path: Path, schema: pa.Schema, ids: Sequence[str], items: Sequence[Any], texts: Sequence[str] | None
) -> None:
    with (
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
        tqdm(total=len(ids), desc=f"write {path.name}", unit="item", delay=2) as bar,
    ):
        for part in batches(len(ids), RECORDS_AT_ONCE):
            records = []
            for i in range(part.start, part.stop):
                records.append({"id": ids[i], **_to_record(items[i], ids[i])})
                if "page_text" in schema.names:
                    records[-1]["page_text"] = None if texts is None else texts[i]
                bar.update()
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


def _to_record(item: Any, name: str) -> dict[str, Any]:
    parsed = parse_item(item, name=f"item {name}")
    if parsed.videos:
        raise ValueError(f"item {name} has a video: only texts and images can be stored")
    images = [_encode_image(image, f"item {name}") for image in parsed.images]
    return {"texts": list(parsed.texts), "images": images, "instruction": parsed.instruction}


def _encode_image(image: ImageLike, name: str) -> bytes:
    """Returns the encoded file: as it is for a path or bytes, else PNG."""
    if isinstance(image, str | Path | bytes):
        open_rgb(image, name=name)
        return image if isinstance(image, bytes) else Path(image).read_bytes()
    if not (isinstance(image, Image.Image) and image.mode in ("L", "RGB")):
        image = open_rgb(image, name=name)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _from_record(record: Mapping[str, Any]) -> Any:
    texts, images = record["texts"] or [], record["images"] or []
    # A text that looks like a file's name stays a text only inside a dict.
    if len(texts) == 1 and not images and record["instruction"] is None and not Path(texts[0]).suffix:
        return texts[0]
    item = {"text": texts, "images": images, "instruction": record["instruction"]}
    return {key: value for key, value in item.items() if value}


def _read_header(folder: Path) -> dict[str, Any] | None:
    path = folder / "benchmark.json"
    if not path.exists():
        return None
    header = read_json(path, remedy="save the benchmark again")
    for key in ("name", "instruction", "document_instruction"):
        if not isinstance(value := header.get(key), str | None):
            raise ValueError(f"{path}: {key} is {shown(value)}, expected a text or null")
    if header.get("version") != VERSION:
        raise ValueError(f"{path} has version {shown(header.get('version'))}, this program reads {VERSION}")
    return header


def _read_items(folder: Path, kind: str) -> tuple[list[str], LazyItems, list[str] | None]:
    """Returns ids, lazy items, and the page texts if every item has one."""
    if (path := folder / f"{kind}.parquet").exists():
        return _read_parquet(path)
    records = _beir_records(folder, kind)
    ids = [str(record.get("_id", record.get("id", ""))) for record in records]
    for record, name in zip(records, ids, strict=True):
        _check_beir(record, f"'{folder}', {kind} {name!r}"[:200])
    texts = [record.get("page_text") or _beir_text(record) or "" for record in records]
    empty = [
        i for i, record in zip(ids, records, strict=True) if not _beir_text(record) and record.get("image") is None
    ]
    if empty and kind == "queries":
        raise ValueError(
            f"'{folder}': {len(empty)} queries have no text, the first is {empty[0]}: fill it in or drop it"
        )
    if empty:
        _logger.warning("'%s': %d documents without content are read as the text %s", folder, len(empty), EMPTY)
    return ids, LazyItems(len(records), lambda i: _from_beir(records[i], folder)), texts if any(texts) else None


def _beir_records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of queries or corpus, from jsonl, or from the hub's parquet files, of one split."""
    for name in (f"{kind}.jsonl", f"{kind}.jsonl.gz"):
        if (path := folder / name).exists():
            return list(read_json_lines(path))
    if there := splits(folder / kind):
        split = SPLIT if SPLIT in there else there[0]
        if split != SPLIT and len(there) > 1:
            raise ValueError(f"'{folder / kind}' has files of {', '.join(there)}: keep those of one split")
        return read_columns(Table(shards(folder / kind, split)), ("_id", "id", "title", "text"))
    raise FileNotFoundError(
        f"{folder} has neither {kind}.parquet nor {kind}.jsonl nor a folder {kind} of parquet files: it is not a "
        "benchmark folder"
    )


def _read_parquet(path: Path) -> tuple[list[str], LazyItems, list[str] | None]:
    try:
        file = pq.ParquetFile(path)
        missing = {"id", *ITEM_COLUMNS} - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}: it was not written by Benchmark.save")
        ids = file.read(["id"])["id"].to_pylist()
        texts = file.read(["page_text"])["page_text"].to_pylist() if "page_text" in file.schema_arrow.names else []
    except pa.ArrowException as error:
        raise ValueError(f"{path} is corrupt ({error}): save the benchmark again") from error
    records = Records([file], ITEM_COLUMNS)
    items = LazyItems(len(ids), lambda i: _from_record(records(i)), source=files_fingerprint([path]))
    return ids, items, texts if texts and None not in texts else None


def _from_beir(record: Mapping[str, Any], folder: Path) -> Any:
    text, image = _beir_text(record), record.get("image")
    if image is None:
        return {"text": text or EMPTY} if not text or Path(text).suffix else text  # never taken for a file's name
    item: dict[str, Any] = {"image": path_inside(folder, image, f"a document of '{folder}'")}
    return {**item, "text": text} if text else item


def _check_beir(record: Mapping[str, Any], name: str) -> None:
    """Raises ValueError where a field is no text."""
    for field in ("title", "text", "page_text"):
        if not isinstance(value := record.get(field), str | None):
            raise ValueError(f"{name}: {field} is {shown(value)}, expected a text")


def _beir_text(record: Mapping[str, Any]) -> str:
    return f"{record.get('title') or ''} {record.get('text') or ''}".strip()


def _read_candidates(folder: Path) -> dict[str, list[str]] | None:
    path = folder / "candidates.jsonl"
    if not path.exists():
        return None
    records = list(read_json_lines(path))
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("id"), str) or not isinstance(record.get("candidates"), list):
            raise ValueError(f'{path}, line {number}: expected {{"id": query, "candidates": [document, ...]}}')
        if not all(isinstance(document, str) for document in record["candidates"]):
            raise ValueError(f"{path}, line {number}: a candidate is no text")
    return {record["id"]: record["candidates"] for record in records}
