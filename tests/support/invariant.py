"""Whether anything was lost: an independent look at the rows, their vectors and the outbox.

It shares nothing with the package: rows are read as SQL by the plain drivers, and texts, fingerprints and vectors are
worked out here once more.  It is for the models of ``tests/tracking/models.py``, after everything has come to rest.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import URL

MODEL = "counting@1"

ROWS = """
SELECT article.id, article.title, article.body, author.name, {vector}, article.embedding_fingerprint
FROM article LEFT JOIN author ON author.id = article.author_id ORDER BY article.id
"""

ENTRIES = "SELECT entity, row_key, state, reason, claimed_by FROM vector_outbox ORDER BY id"


@dataclass(frozen=True)
class Finding:
    """What was found, and what is wrong with it."""

    rows: int
    current: int
    pending: int
    dead: int
    faults: tuple[str, ...]

    def check(self) -> Finding:
        """Fail, unless nothing is wrong."""
        assert not self.faults, f"{len(self.faults)} of {self.rows}: " + "; ".join(self.faults[:10])
        return self


def text_of(*parts: str | None) -> str | None:
    """Return the text that a row should be embedded by."""
    present = [part for part in parts if part is not None and part.strip()]
    return "\n\n".join(present) if present else None


def fingerprint_of(text: str) -> str:
    """Return the fingerprint that the row of a text should have."""
    return MODEL + ":" + hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def vector_of(text: str) -> bytes:
    """Return the vector that the tests' embedder makes of a text: float32, little-endian."""
    version = MODEL.partition("@")[2]
    digest = hashlib.sha256(f"{version}:{text}".encode()).digest()
    return struct.pack("<4f", *(struct.unpack("<f", struct.pack("<f", byte / 255))[0] for byte in digest[:4]))


def find(url: URL, *, related: bool = False, must_be_current: bool = False) -> Finding:
    """Look at a database at rest.

    Args:
        url: of the database.
        related: whether the author's name is part of an article's text.
        must_be_current: an entry is no excuse.
    """
    if url.get_backend_name() == "sqlite":
        with sqlite3.connect(str(url.database)) as file:
            rows = file.execute(ROWS.format(vector="article.embedding")).fetchall()
            entries = file.execute(ENTRIES).fetchall()
        file.close()
    else:
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain) as connection:
            rows = connection.execute(ROWS.format(vector="vector_send(article.embedding)")).fetchall()
            entries = connection.execute(ENTRIES).fetchall()
        rows = [(*row[:4], None if row[4] is None else _little_endian(row[4]), row[5]) for row in rows]
    return _judge(rows, entries, related, must_be_current)


def _little_endian(sent: bytes) -> bytes:
    """Turn what PostgreSQL sends, two numbers of 16 bits and then float32, into float32 alone."""
    count, _ = struct.unpack_from(">HH", sent)
    return struct.pack(f"<{count}f", *struct.unpack_from(f">{count}f", sent, 4))


def _judge(rows: Sequence[Any], entries: Sequence[Any], related: bool, must_be_current: bool) -> Finding:
    faults = []
    by_row: dict[str, list[str]] = {}
    for entity, row_key, state, reason, _ in entries:
        if entity != "article":
            faults.append(f"an entry of {entity}")
            continue
        by_row.setdefault(row_key, []).append(state)
        if state == "dead" and not (reason or "").strip():
            faults.append(f"the dead entry of {row_key} says no reason")
    current = 0
    for id_, title, body, name, vector, mark in rows:
        text = text_of(title, body, name if related else None)
        wanted = (None, None) if text is None else (fingerprint_of(text), vector_of(text))
        names = by_row.get(f"[{id_}]", [])
        if (mark, vector) == wanted:
            current += 1
        elif must_be_current:
            faults.append(f"{id_} is not current: {text!r} has {mark}, entries {names}")
        elif len(names) != 1:
            faults.append(f"{id_} is not current, and has the entries {names}: {text!r} has {mark}")
        elif mark == wanted[0]:
            faults.append(f"{id_} has the fingerprint of its text, and another vector")
    known = {f"[{row[0]}]" for row in rows}
    for row_key, states in by_row.items():
        if row_key not in known and "pending" in states:
            faults.append(f"{row_key} is pending, and does not exist")
    count = Counter(entry[2] for entry in entries)
    return Finding(len(rows), current, count["pending"], count["dead"], tuple(faults))
