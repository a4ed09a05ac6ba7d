"""Writes small PDFs with text, an outline and nothing else, byte by byte."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT = 300, 400  # of every page, in points
Line = tuple[float, float, float, str]  # x, y of the baseline, font size, text
Bookmark = tuple[str, int, float | None]  # title, page index, height that it points to (None = the page alone)


def write_pdf(path: Path, pages: Sequence[Sequence[Line]], outline: Sequence[Bookmark], *, rotate: int = 0) -> Path:
    """A PDF of one page per list of lines; an outline title that starts with tabs is that many levels deep."""
    objects: dict[int, bytes] = {}
    first_page, font = 3, 3 + 2 * len(pages)
    root_outline = font + 1
    kids = " ".join(f"{first_page + 2 * i} 0 R" for i in range(len(pages)))
    objects[1] = f"<< /Type /Catalog /Pages 2 0 R /Outlines {root_outline} 0 R >>".encode()
    objects[2] = f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode()
    for i, lines in enumerate(pages):
        text = "".join(f"BT /F1 {size} Tf {x} {y} Td ({_escape(t)}) Tj ET\n" for x, y, size, t in lines)
        content = text.encode("latin-1")
        objects[first_page + 2 * i] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH} {HEIGHT}] /Rotate {rotate} "
            f"/Resources << /Font << /F1 {font} 0 R >> >> /Contents {first_page + 2 * i + 1} 0 R >>"
        ).encode()
        objects[first_page + 2 * i + 1] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
    objects[font] = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    objects |= _outline_objects(root_outline, first_page, outline)
    path.write_bytes(_assemble(objects))
    return path


def _outline_objects(root: int, first_page: int, outline: Sequence[Bookmark]) -> dict[int, bytes]:
    levels = [len(title) - len(title.lstrip("\t")) for title, _, _ in outline]
    parents = [
        next((j for j in range(i - 1, -1, -1) if levels[j] < level), -1) for i, level in enumerate(levels)
    ]  # -1 = the root
    objects = {}
    for i in range(-1, len(outline)):
        children = [j for j, parent in enumerate(parents) if parent == i]
        fields = [] if i >= 0 else ["/Type /Outlines"]
        if children:
            fields.append(f"/First {root + 1 + children[0]} 0 R /Last {root + 1 + children[-1]} 0 R")
            fields.append(f"/Count {len(children)}")
        if i >= 0:
            title, page, y = outline[i]
            siblings = [j for j, parent in enumerate(parents) if parent == parents[i]]
            at = siblings.index(i)
            fields.append(f"/Title ({_escape(title.lstrip(chr(9)))}) /Parent {root + 1 + parents[i]} 0 R")
            fields += [f"/Prev {root + 1 + siblings[at - 1]} 0 R"] if at else []
            fields += [f"/Next {root + 1 + siblings[at + 1]} 0 R"] if at + 1 < len(siblings) else []
            view = "/Fit" if y is None else f"/XYZ 0 {y} 0"
            fields.append(f"/Dest [{first_page + 2 * page} 0 R {view}]")
        objects[root + 1 + i] = f"<< {' '.join(fields)} >>".encode("latin-1")
    return objects


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _assemble(objects: dict[int, bytes]) -> bytes:
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number in sorted(objects):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, objects[number])
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def encrypt_pdf(path: Path, password: str) -> Path:
    """Encrypts the streams of a PDF of `write_pdf` (RC4 of 40 bits, revision 2); it must have no strings elsewhere."""
    data, identity = path.read_bytes(), b"0123456789abcdef"
    padded = (password.encode() + PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + (-4).to_bytes(4, "little", signed=True) + identity).digest()[:5]
    objects = {}
    for match in re.finditer(rb"(\d+) 0 obj\n(.*?)\nendobj\n", data, re.DOTALL):
        number, body = int(match[1]), match[2]
        if b"stream\n" in body:
            head, content = body.removesuffix(b"\nendstream").split(b"stream\n", 1)
            own = hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[:10]
            body = head + b"stream\n" + _rc4(own, content) + b"\nendstream"
        objects[number] = body
    number = max(objects) + 1
    objects[number] = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (
        owner.hex().encode(),
        _rc4(key, PADDING).hex().encode(),
    )
    fields = b"/Encrypt %d 0 R /ID [<%s> <%s>] /Root" % (number, identity.hex().encode(), identity.hex().encode())
    path.write_bytes(_assemble(objects).replace(b"/Root", fields))
    return path


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
