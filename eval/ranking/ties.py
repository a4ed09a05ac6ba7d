"""The hash that breaks ties in rankings."""

from __future__ import annotations

import hashlib


def tie_hash(*parts: object) -> int:
    """Returns a stable 64-bit hash that orders equally scored candidates, so that a constant scorer ranks at chance.

    BLAKE2b with 8 bytes of digest, read as a big-endian unsigned integer, over each part's UTF-8 followed by a zero
    byte. As in the reference implementation of arXiv:2605.24938, where the parts are "<dataset>:<query index>" and
    the candidate's name.

    Example:
      >>> tie_hash("news:0", "page-3") != tie_hash("news:1", "page-3")
      True
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(str(part).encode("utf-8", errors="surrogatepass") + b"\0")
    return int.from_bytes(digest.digest(), "big")
