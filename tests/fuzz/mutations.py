"""Damage to files: of their bytes, of their JSON, of the headers and the pickles in them."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = "\0deep"  # stands for a list that is nested too deep for `json.dumps`
HUGE = "\0huge"  # for an integer of 400 digits
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1000, 20_000, 10**9, 2**31, 2**40, 2**63, 2**64, HUGE, 0.5, 1e9, 1e300),
    *(float("inf"), float("-inf"), float("nan"), "", "x", "a" * 1000, "../../secret", "/etc/passwd", "\0", "\ud800"),
    *([], [1], [[]], ["x"], [None], {}, {"a": 1}, {"": {}}, DEEP, "inf", "1e9", "(", "(a+)+$", "(.*)*x", "[", "\\"),
    *("{{ 'a' * 2000000000 }}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    *(
        "{% set n = namespace(s='a') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{{ x.y.z }}",
    ),
    *(
        "{{ 'a'.center(2000000000) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    ),
    *(
        "{{ range(99999) | map('string') | join(',' * 99999) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%2000000000d' % 1 }}",
        "{%",
    ),
)
PATTERNS = (
    "(a+)+$",
    "(.*)*x",
    r"(\w+\s?)*$",
    "(",
    "[",
    "(?:a|a)*b",
    "x{1000000}{1000000}",
    r"(?<=a.*)b",
    r"\p{Xx}",
    "a" * 10_000,
)
STRANGE = (b"", b"\0", b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0" * 64, b"-1", b"99999999999")


def mutate(folder: Path, names: list[str], rng: random.Random) -> str:
    """Damages one of the files of a folder, and returns which, and how."""
    name = rng.choice(names)
    path = folder / name
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        how = rng.choice(_ways(path))
        try:
            path.write_bytes(how(path.read_bytes(), rng))
        except (
            ValueError,
            KeyError,
            zipfile.BadZipFile,
            RecursionError,
            IndexError,
            NotImplementedError,
        ):  # damaged before
            path.write_bytes(of_bytes(path.read_bytes(), rng))
    if rng.random() < 0.02:
        path.unlink()
        path.symlink_to(rng.choice(("/etc/passwd", "../" * 20 + "etc/passwd", name, "/dev/null", "/dev/zero")))
        return f"{name}: a link"
    return name


Mutation = Callable[[bytes, random.Random], bytes]


def _ways(path: Path) -> list[Mutation]:
    if path.suffix == ".json":
        return [of_json, of_json, of_json, of_bytes]
    if path.suffix == ".jsonl":
        return [of_lines, of_lines, of_bytes]
    if path.suffix == ".safetensors":
        return [of_header, of_header, of_bytes]
    if path.suffix == ".pt":
        return [of_pickle, of_pickle, of_bytes]
    if path.suffix == ".jinja":
        return [of_template, of_template, of_bytes]
    return [of_bytes]


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, removes or replaces some bytes."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    # Formats keep what matters at the beginning or at the end.
    at = rng.choice((at, min(at, rng.randrange(1, 200)), max(0, len(out) - rng.randrange(1, 200))))
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(out[:at])
    if kind == 1:
        for _ in range(rng.choice((1, 2, 8, 64))):
            if out:
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        out[at:at] = rng.choice(STRANGE)
    elif kind == 3:
        out[at : at + rng.choice((1, 4, 8, 100))] = rng.choice(STRANGE)
    elif kind == 4:
        del out[at : at + rng.choice((1, 2, 4, 64, 4096))]
    elif kind == 5:
        out[at:at] = out[at : at + rng.choice((4, 64, 1024))] * rng.choice((1, 2, 50))
    else:
        for i in range(at, min(at + rng.choice((1, 2, 4, 8)), len(out))):
            out[i] = rng.randrange(256)
    return bytes(out)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Replaces, removes, adds or moves a value of a JSON file."""
    return _dumped(_changed(json.loads(data), rng))


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """Does the same to a line of a file of JSON lines."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _dumped(_changed(json.loads(lines[at]), rng))
    return b"\n".join(lines) + b"\n"


def of_header(data: bytes, rng: random.Random) -> bytes:
    """Does the same to the header of a safetensors file, or changes its length."""
    length = int.from_bytes(data[:8], "little")
    header, values = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.1:
        return rng.choice((0, 1, max(length - 1, 0), length + 1, 2**31, 2**63)).to_bytes(8, "little") + header + values
    if rng.random() < 0.2:  # values that are no numbers
        at = rng.randrange(len(values) + 1)
        return (
            data[:8]
            + header
            + values[:at]
            + rng.choice((b"\xff\xff\xff\xff", b"\0\0\xc0\x7f", b"\0\0\x80\x7f"))
            + values[at + 4 :]
        )
    header = of_json(header, rng)
    return len(header).to_bytes(8, "little") + header + values


def of_pickle(data: bytes, rng: random.Random) -> bytes:
    """Damages the pickle in a torch file, or writes another one."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = {info.filename: file.read(info) for info in file.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    depth = rng.choice((10, 100, 10_000, 100_000))
    entries[name] = rng.choice(
        (
            of_bytes(entries[name], rng),
            of_bytes(of_bytes(entries[name], rng), rng),
            bytes(rng.choice(b"()[]}{NKtsaubhqRQ.e\x85\x86\x87\x88") for _ in range(rng.randrange(1, 200))) + b".",
            b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s.",
            b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
            b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".",
        )
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        for each, content in entries.items():
            file.writestr(each, content)
    return out.getvalue()


def of_template(data: bytes, rng: random.Random) -> bytes:
    """Puts a hostile expression somewhere into a template."""
    hostile = [value for value in VALUES if isinstance(value, str) and value.startswith(("{{", "{%"))]
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(hostile).encode() + data[at:]


def _changed(content: Any, rng: random.Random) -> Any:
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places or rng.random() < 0.03:
        return rng.choice(VALUES)
    parent, key = rng.choice(places)
    named = [place for place in places if isinstance(place[1], str) and not isinstance(place[0][place[1]], dict)]
    if named and rng.random() < 0.5:  # one for each name, so that a long list does not take all the damage
        chosen = rng.choice(sorted({place[1] for place in named}))
        parent, key = rng.choice([place for place in named if place[1] == chosen])
    kind = rng.randrange(10)
    value: Any = rng.choice(PATTERNS) if key in ("Regex", "String") else rng.choice(VALUES)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("x", "", "a" * 500, "rank_pattern"))] = rng.choice(
            (value, {pattern: 4 for pattern in PATTERNS})
        )
    elif kind == 2:
        other, place = rng.choice(places)
        parent[key] = copy.deepcopy(other[place]) if other is not parent else value
    elif kind == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = rng.choice((-parent[key], parent[key] * 1000, parent[key] + 1, str(parent[key])))
    elif kind == 4 and key in ("rank_pattern", "alpha_pattern", "prompts"):
        parent[key] = {rng.choice(PATTERNS): rng.choice(VALUES)}
    else:
        parent[key] = value
    return content


def _places(content: Any) -> Any:
    """Yields containers and keys of all values, of long containers some."""
    items = (
        list(content.items() if isinstance(content, dict) else enumerate(content))
        if isinstance(content, dict | list)
        else []
    )
    for key, value in items[:200]:
        yield content, key
        yield from _places(value)


def _dumped(content: Any) -> bytes:
    text = json.dumps(content).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    return text.replace(json.dumps(HUGE), "9" * 400).encode()
