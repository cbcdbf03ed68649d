"""Each way to change a row is noticed by who is said to notice it, or is reported by a check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.orm import sessionmaker

from sqla_vector.tracking import Worker, check, track, untrack
from tests.support.backends import Backend
from tests.tracking.models import CountingEmbedder
from tests.tracking.stale import is_current, joined
from tests.tracking.ways import WAYS, Way, models, rows, table

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"
BEGIN, END = "<!-- who notices what: begin -->\n", "<!-- who notices what: end -->\n"

Mode = Literal["listener", "triggers", "both", "none"]


class Matrix:
    """A database for one column of the matrix."""

    def __init__(self, backend: Backend, mode: Mode) -> None:
        self.base = models(triggers=mode in ("triggers", "both"))
        self.engine: Any = backend.make_engine()
        if backend.family == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
        self.base.metadata.create_all(self.engine)
        self.embedders = {name: CountingEmbedder(name=name) for name in ("first", "second", "third")}
        self.given: dict[str, Any] = {
            "embedders": self.embedders,
            "outbox": self.base.outbox,
            "models": self.base,
        }
        self.plain = sessionmaker(self.engine)
        self.sessions = sessionmaker(self.engine)
        if mode in ("listener", "both"):
            track(self.sessions, **self.given)
        self.worker = Worker(self.plain, poll=0.001, backoff=0.0, **self.given)

    def fill(self) -> None:
        """Put the rows there, with their vectors."""
        with self.plain.begin() as session:
            for one in reversed(self.base.metadata.sorted_tables):
                session.execute(one.delete())
            for class_, values in rows(self.base):
                session.execute(insert(class_), values)
        check(self.plain, fix=True, **self.given)
        self.worker.run(until_empty=True)
        assert self.stale() == []
        for embedder in self.embedders.values():
            embedder.calls.clear()

    def stale(self) -> list[str]:
        """Return the vectors that are not those of the texts, read by a new session."""
        found = []
        with self.plain() as session:
            comments = session.scalars(select(self.base.Comment).order_by(self.base.Comment.id)).all()
            for row in session.scalars(select(self.base.Article)):
                author = session.get(self.base.Author, row.code) if row.code else None
                topic = session.get(self.base.Topic, row.topic_code) if row.topic_code else None
                said = [comment.word for comment in comments if comment.article_id == row.id]
                whole = joined(row.title, row.code, author and author.name, topic and topic.name)
                wanted = {"embedding": row.title, "whole": whole, "words": " ".join([f"{row.id}:", *said])}
                for (key, text), embedder in zip(wanted.items(), self.embedders.values(), strict=True):
                    if not is_current(row, key, text, embedder):
                        found.append(f"{row.id}.{key}")
        return found


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.cursor().execute("PRAGMA foreign_keys = ON")
    connection.cursor().execute("PRAGMA synchronous = OFF")


def ways(backend: Backend) -> list[Way]:
    return [way for way in WAYS if way.family in (None, backend.family)]


@pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
@pytest.mark.parametrize("mode", ["listener", "triggers", "both", "none"])
def test_each_way_to_change_a_row_is_noticed_or_reported(backend: Backend, mode: Mode):
    matrix = Matrix(backend, mode)
    for way in ways(backend):
        matrix.fill()
        with matrix.sessions() as session, session.begin():
            way.change(session, matrix.base)
        expected = (way.listener and mode in ("listener", "both")) or (way.triggers and mode in ("triggers", "both"))
        if mode == "none":
            assert matrix.stale() != [], f"{way.name} changes nothing"
        matrix.worker.run(until_empty=True)
        stale = matrix.stale()
        assert (stale == []) == expected, f"{way.name}, {mode}: {stale}"
        report = check(matrix.plain, fix=True, **matrix.given)
        assert sum(column.rows - column.current for column in report.columns) == len(stale), f"{way.name}\n{report}"
        matrix.worker.run(until_empty=True)
        assert matrix.stale() == [], way.name
        # Whoever noticed it, and be it both: nothing was embedded twice.
        for embedder in matrix.embedders.values():
            assert Counter(embedder.texts).total() == len(set(embedder.texts)), f"{way.name}: {embedder.texts}"
    untrack(matrix.sessions)


def test_the_table_of_the_documentation_says_so():
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table().strip(), (
        "write it: python -m tests.tracking.test_capture_matrix"
    )


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
