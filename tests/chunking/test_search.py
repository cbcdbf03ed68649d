"""Search in chunks, grouped to documents: k documents whenever k have chunks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from sqla_vector import nearest, search
from sqla_vector.search import best_per_group
from sqla_vector.tracking import near_text
from tests.chunking.models import document_models, paragraphs
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

Make = Callable[..., Tracked]
DRIVERS = pytest.mark.backends(
    "psycopg", "psycopg_async", "psycopg2", "asyncpg", "pysqlite3", "aiosqlite", "sqlite_numpy", "sqlite_stdlib"
)


def documents(tracked: Make, embedder: Any, name: str) -> Tracked:
    index = None if name == "sqlite_numpy" else {"metric": "cosine", "method": "hnsw"}
    t = tracked(document_models(index=index), embedder)
    document = t.base.Document
    bodies = {1: range(1, 60), 2: range(60, 63), 3: range(63, 64), 4: range(64, 70), 5: (), 6: range(70, 72)}
    t.run(
        lambda s: s.add_all(
            document(id=id_, title=f"{id_ % 2}", body=paragraphs(*numbers)) for id_, numbers in bodies.items()
        )
    )
    return t


def reference(embedder: CountingEmbedder, query: str, rows: list[Any]) -> list[int]:
    """Return documents by the distance of their nearest chunk."""
    wanted = embedder.vector(query)
    best: dict[int, float] = {}
    for id_, text in rows:
        vector = embedder.vector(text)
        distance = 1 - float(np.dot(wanted, vector) / np.linalg.norm(wanted) / np.linalg.norm(vector))
        best[id_] = min(distance, best.get(id_, 9.0))
    return sorted(best, key=lambda id_: (best[id_], id_))


@DRIVERS
@pytest.mark.parametrize("query", [paragraphs(5), paragraphs(61), "anything else"])
def test_k_documents_are_found_however_many_chunks_one_of_them_has(tracked: Make, backend: Any, query: str) -> None:
    embedder = CountingEmbedder()
    t = documents(tracked, embedder, backend.name)
    chunk, document = t.base.Chunk, t.base.Document
    rows = t.untracked(lambda s: s.execute(select(chunk.document_id, chunk.text)).all())
    expected = reference(embedder, query, rows)
    assert len(expected) == 5

    def found(session: Any, k: int, *criteria: Any) -> list[int]:
        stmt = select(chunk).join(document, document.id == chunk.document_id).where(*criteria)
        hits = search(
            session, best_per_group(near_text(stmt, chunk.embedding, query, k, session=session), chunk.document_id)
        )
        assert all(a.distance <= b.distance for a, b in pairwise(hits))
        return [hit.entity.document.id for hit in hits]

    def work(session: Any) -> None:
        assert found(session, 3) == expected[:3]
        assert found(session, 10) == expected
        assert found(session, 10, document.title == "0") == [id_ for id_ in expected if id_ % 2 == 0]

    t.run(lambda s: work(s))


@pytest.mark.backends("psycopg", "pysqlite3")
def test_documents_are_selected_with_the_chunk_that_was_found(tracked: Make, backend: Any) -> None:
    embedder = CountingEmbedder()
    t = documents(tracked, embedder, backend.name)
    chunk, document = t.base.Chunk, t.base.Document
    stmt = select(document, chunk.start, chunk.end).join_from(chunk, document, document.id == chunk.document_id)
    stmt = best_per_group(nearest(stmt, chunk.embedding, embedder.vector(paragraphs(61)), k=2), chunk.document_id)
    first, _ = t.run(lambda s: s.execute(stmt).all())
    assert first.Document.id == 2
    assert first.Document.body[first.start : first.end] == paragraphs(61)
