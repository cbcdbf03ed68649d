"""Whether an acknowledgement was false, looked at while everything goes on.

A row without an entry is one whose document is as the row is, at any moment, and a row that is gone without an entry
has no document.  Both are asked of the database in one statement each, and of the server by its real-time ``_mget``;
nothing here is the package's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from elasticsearch import Elasticsearch
from sqlalchemy import Connection, Engine, String, cast, exists, func, literal, select, union

_LOOKS = 10
"""How often a document has to be found wrong, since rows and documents change between two looks."""

Fields = dict[str, Any]


class Watcher:
    """Looks at a database of ``mirrored_models()`` and at its index.

    Args:
        engine: of the database.
        client: of a server that answers.
        index: what is declared; its name, its channel and its outbox are used.
        base: the models.
    """

    def __init__(self, engine: Engine, client: Elasticsearch, base: Any) -> None:
        self._engine, self._client = engine, client
        self._alias, self._outbox = base.index.name, base.outbox
        self._article, self._author = base.Article.__table__, base.Author.__table__
        self._entries = self._outbox.c.channel == base.index.channel
        self._row_key = literal("[") + cast(self._article.c.id, String) + "]"
        self._ids: set[str] = set()
        self.noted: dict[str, int] = {}
        """The last entry that was seen of each row."""
        self.looks = 0

    def look(self) -> None:
        """Fail if a document is not what it has to be, whatever is on its way."""
        self.looks += 1
        with self._engine.connect() as connection:
            suspects = self._wrong(connection, self._settled(connection))
            for _ in range(_LOOKS):
                if not suspects:
                    break
                connection.rollback()
                settled = self._settled(connection)
                still = {id_: row for id_, row in suspects.items() if same(settled.get(id_), row)}
                suspects = self._wrong(connection, still)
            assert not suspects, f"acknowledged, and not in the index: {suspects}"
        assert not (extra := self._extra()), f"deleted, and in the index: {extra}"

    def check_versions(self) -> None:
        """Fail if a document was written with a number from before its row's last change."""
        self._client.indices.refresh(index=self._alias)
        found = self._client.search(index=self._alias, size=10_000, version=True, source=False)["hits"]["hits"]
        old = [hit for hit in found if hit["_version"] <= self.noted.get(hit["_id"], 0)]
        assert not old, f"documents of versions from before their changes: {old}"
        assert self.noted.keys() & {hit["_id"] for hit in found}

    def pending(self) -> int:
        """Return how many entries wait."""
        with self._engine.connect() as connection:
            waiting = select(func.count()).where(self._entries, self._outbox.c.state == "pending")
            return int(connection.scalar(waiting) or 0)

    def _settled(self, connection: Connection) -> dict[str, Fields]:
        """Return the rows that no entry names."""
        article, author, outbox = self._article.c, self._author.c, self._outbox.c
        names = select(outbox.id, outbox.row_key).where(self._entries)
        for number, row_key in connection.execute(names):
            id_ = row_key[1:-1]
            self.noted[id_] = max(number, self.noted.get(id_, 0))
        columns = (article.title, article.body, article.views, author.name.label("author"), article.embedding)
        stmt = (
            select(article.id, *columns)
            .select_from(self._article.outerjoin(self._author))
            .where(~exists().where(self._entries, outbox.row_key == self._row_key))
        )
        found = {str(row[0]): dict(row._mapping) for row in connection.execute(stmt)}
        self._ids.update(found)
        for row in found.values():
            del row["id"]
        return found

    def _wrong(self, connection: Connection, rows: dict[str, Fields]) -> dict[str, Fields]:
        """Return the rows whose documents are others, or missing."""
        documents = self._get(rows, source=True)
        return {id_: row for id_, row in rows.items() if not same(row, documents.get(id_, {}).get("_source"))}

    def _extra(self) -> list[str]:
        """Return the documents that no row and no entry has."""
        before = self._get(self._ids)
        with self._engine.connect() as connection:
            rows = select(self._row_key.label("row_key"))
            known = set(connection.scalars(union(rows, select(self._outbox.c.row_key).where(self._entries))))
        gone = {id_: doc for id_, doc in before.items() if f"[{id_}]" not in known}
        # One of another version was written since, for a row that has come back.
        after = self._get(gone)
        return [id_ for id_, doc in gone.items() if id_ in after and after[id_]["_version"] == doc["_version"]]

    def _get(self, ids: Any, *, source: bool = False) -> dict[str, Any]:
        if not ids:
            return {}
        wanted = [{"_id": id_, "_source": source} for id_ in sorted(ids)]
        docs = self._client.mget(index=self._alias, docs=wanted)["docs"]
        assert not [doc for doc in docs if "error" in doc], docs
        return {doc["_id"]: doc for doc in docs if doc["found"]}


def same(row: Fields | None, other: Fields | None) -> bool:
    """Tell whether a row is like another one, or like a document."""
    if row is None or other is None:
        return row is other
    found = [{name: v for name, v in one.items() if v is not None and name[0] != "_"} for one in (row, other)]
    vectors = [np.asarray(one.pop("embedding", []), np.float32) for one in found]
    return found[0] == found[1] and vectors[0].shape == vectors[1].shape and np.allclose(*vectors, rtol=1e-6)
