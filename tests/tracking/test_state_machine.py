"""Random programs over two sessions: after a commit and a worker, every row has the vector of its text.

``SQLA_VECTOR_RUNS`` and ``SQLA_VECTOR_STEPS`` say how many programs, and how long: ``make soak-state``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import ForeignKey, Table, delete, event, func, insert, literal, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SAWarning
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.orm.exc import FlushError, ObjectDeletedError, StaleDataError

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import Worker, check, outbox_table, outbox_triggers, track, untrack
from tests.support.backends import Backend
from tests.tracking.models import DIM, CountingEmbedder
from tests.tracking.stale import digest_of, joined

pytestmark = pytest.mark.long

RUNS = int(os.environ.get("SQLA_VECTOR_RUNS", "25"))
STEPS = int(os.environ.get("SQLA_VECTOR_STEPS", "30"))
SHRINK = "SQLA_VECTOR_SHRINK" in os.environ
"""Whether a program that fails is made shorter, which takes minutes."""

MINE = [np.array([7, 7, 7, n], np.float32) for n in range(3)]
"""Vectors that are set by hand."""

EXPECTED = (IntegrityError, OperationalError, StaleDataError, ObjectDeletedError, FlushError, SAWarning)
"""What two sessions may do to one another, or to themselves: the transaction is rolled back."""

indexes = st.integers(0, 1)
keys = st.integers(1, 5)
texts = st.sampled_from(["a", "b", "c", " ", "", None])
words = st.sampled_from(["x", "y", "z"])


def models(*, triggers: bool) -> Any:
    """Return a base with columns that are embedded at flush, by a worker, of related rows, and in a subclass."""

    class Base(DeclarativeBase):
        outbox: Table

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        articles: Mapped[list[Article]] = relationship(
            back_populates="author", cascade="save-update, merge, delete", passive_deletes=False
        )

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str | None]
        article_id: Mapped[int | None] = mapped_column(
            ForeignKey("article.id", ondelete="CASCADE", onupdate="CASCADE"), index=True
        )

    def said(article: Any) -> str:
        return " ".join(comment.word for comment in article.comments if comment.word)

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        title: Mapped[str | None]
        body: Mapped[str | None] = mapped_column(default="c")
        author_id: Mapped[int | None] = mapped_column(
            ForeignKey("author.id", ondelete="SET NULL", onupdate="CASCADE"), index=True
        )
        author: Mapped[Author | None] = relationship(back_populates="articles")
        comments: Mapped[list[Comment]] = relationship(order_by=Comment.id, cascade="all, delete-orphan")
        embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source=("title", "body"), embedder="counting")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        later: Mapped[Any | None] = embedding_column(
            Vector(DIM), source=("title", "author.name"), embedder="counting", when="worker"
        )
        later_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        words: Mapped[Any | None] = embedding_column(
            Vector(DIM), source=said, depends_on=("comments.word",), embedder="counting", when="flush"
        )
        words_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "article"}

    class Review(Article):
        __tablename__ = "review"
        id: Mapped[int] = mapped_column(
            ForeignKey("article.id", ondelete="CASCADE", onupdate="CASCADE"), primary_key=True
        )
        verdict: Mapped[str | None]
        judged: Mapped[Any | None] = embedding_column(Vector(DIM), source="verdict", embedder="counting", when="worker")
        judged_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_identity": "review"}

    Base.Author, Base.Article, Base.Comment, Base.Review = Author, Article, Comment, Review
    Base.outbox = outbox_table(Base.metadata)
    if triggers:
        outbox_triggers(Base, Base.outbox)
    return Base


class Database:
    """A database on which programs are run, one after the other."""

    def __init__(self, backend: Backend, *, triggers: bool) -> None:
        self.base = models(triggers=triggers)
        self.triggers = triggers
        self.tables = self.base.metadata.tables
        is_sqlite = backend.family == "sqlite"
        # Who waits for a lock here waits for good: everything runs in one thread.
        wait = {"timeout": 0.01} if is_sqlite else {"options": "-c lock_timeout=20ms"}
        self.engine: Any = backend.make_engine(connect_args=wait)
        if is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
        self.base.metadata.create_all(self.engine)
        self.embedder = CountingEmbedder()
        self.sessions = sessionmaker(self.engine)
        track(self.sessions, embedders={"counting": self.embedder}, models=self.base, outbox=self.base.outbox)
        self.worker = Worker(self.sessions, backoff=0.0, poll=0.001, batch_size=4)

    def clear(self) -> None:
        """Delete everything."""
        with self.engine.begin() as connection:
            for table in reversed(self.base.metadata.sorted_tables):
                connection.execute(table.delete())

    def entries(self) -> list[Any]:
        """Return the entries that are committed."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(self.base.outbox).order_by(self.base.outbox.c.id)))

    def stale(self) -> set[tuple[str, int, str]]:
        """Return which rows have not the vectors of their texts, read without any mapped class."""
        author, article, comment, review = (self.tables[n] for n in ("author", "article", "comment", "review"))
        found = set()
        with self.engine.connect() as connection:
            names = {row.id: row.name for row in connection.execute(select(author))}
            said: dict[int, list[str]] = {}
            for row in connection.execute(select(comment).order_by(comment.c.id)):
                if row.word:
                    said.setdefault(row.article_id, []).append(row.word)
            for row in connection.execute(select(article)):
                wanted = {
                    "embedding": joined(row.title, row.body),
                    "later": joined(row.title, names.get(row.author_id)),
                    "words": " ".join(said.get(row.id, [])) or None,
                }
                found |= {
                    ("article", row.id, key) for key, text in wanted.items() if not self._is_right(row, key, text)
                }
            for row in connection.execute(select(review)):
                if not self._is_right(row, "judged", joined(row.verdict)):
                    found.add(("review", row.id, "judged"))
        return found

    def _is_right(self, row: Any, key: str, text: str | None) -> bool:
        wanted = digest_of(self.embedder, text)
        vector, stored = getattr(row, key), getattr(row, f"{key}_fingerprint")
        if wanted is None or text is None:
            return vector is None and stored is None
        right = [self.embedder.vector(text), *MINE]
        return stored == wanted and vector is not None and any(np.array_equal(vector, one) for one in right)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()


class Program(RuleBasedStateMachine):
    """A random program."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.db = database
        database.clear()
        base = database.base
        self.Author, self.Article, self.Comment, self.Review = base.Author, base.Article, base.Comment, base.Review
        self.open: list[Session] = [database.sessions(), database.sessions(expire_on_commit=False)]
        self.savepoints: list[list[tuple[Any, int]]] = [[], []]
        self.by_bulk: list[set[tuple[str, int]]] = [set(), set()]
        """Rows that statements changed of which nobody tells the listener, by session, not committed yet."""
        self.unnoticed: set[tuple[str, int]] = set()
        self.next_comment = 0

    # How a step runs, and what follows if it cannot.

    def attempt(self, index: int, function: Callable[[Session], Any]) -> bool:
        """Do something with a session; if it fails as it may, roll back and begin anew."""
        session = self.open[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SAWarning)
                # Of a row that came in the place of one deleted by a statement; the session takes the new one.  An
                # error in its place would leave the session as it never is.
                warnings.filterwarnings("ignore", "Identity map already had an identity", SAWarning)
                function(session)
        except EXPECTED as error:
            if isinstance(error, OperationalError) and not _is_about_locks(error):
                raise
            self.give_up(index)
            return False
        return True

    def give_up(self, index: int) -> None:
        """Roll back whatever a session has done, also within savepoints."""
        session = self.open[index]
        try:
            before = self.db.entries()
        except OperationalError as error:
            # SQLite lets nobody read while a commit waits for others who read.
            if not _is_about_locks(error):
                raise
            before = None
        session.rollback()
        session.expunge_all()
        assert before is None or self.db.entries() == before, "a rollback left entries"
        self.savepoints[index].clear()
        self.by_bulk[index].clear()

    def by_statement(self, index: int, session: Session, entity: str, found: Any) -> None:
        """Note that rows are changed by a statement."""
        self.by_bulk[index] |= {(entity, key) for key in session.scalars(found)}

    # Objects.

    @rule(index=indexes, key=keys, name=texts)
    def add_author(self, index: int, key: int, name: str | None) -> None:
        self.attempt(index, lambda s: s.add(self.Author(id=key, name=name)))

    @rule(index=indexes, key=keys, title=texts, author=st.none() | keys, is_review=st.booleans(), flushed=st.booleans())
    def add_article(
        self, index: int, key: int, title: str | None, author: int | None, is_review: bool, flushed: bool
    ) -> None:
        def add(session: Session) -> None:
            more = {"verdict": title} if is_review else {}
            article = (self.Review if is_review else self.Article)(id=key, title=title, author_id=author, **more)
            session.add(article)
            if flushed:
                session.flush()

        self.attempt(index, add)

    @rule(index=indexes, key=keys, author=keys, title=texts)
    def add_article_through_its_author(self, index: int, key: int, author: int, title: str | None) -> None:
        def add(session: Session) -> None:
            found = session.get(self.Author, author)
            if found is not None:
                found.articles.append(self.Article(id=key, title=title))

        self.attempt(index, add)

    @rule(index=indexes, key=keys, title=texts, mine=st.integers(0, 2))
    def add_article_with_a_vector(self, index: int, key: int, title: str | None, mine: int) -> None:
        self.attempt(index, lambda s: s.add(self.Article(id=key, title=title, embedding=MINE[mine], later=MINE[mine])))

    @rule(index=indexes, key=keys, value=texts, name=st.sampled_from(["title", "body", "verdict"]))
    def edit(self, index: int, key: int, value: str | None, name: str) -> None:
        def do(session: Session) -> None:
            article = session.get(self.Article, key)
            if article is not None and hasattr(article, name):
                setattr(article, name, value)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, value=words)
    def edit_by_expression(self, index: int, key: int, value: str) -> None:
        def do(session: Session) -> None:
            article = session.get(self.Article, key)
            if article is not None:
                article.title = func.coalesce(self.Article.title, "") + literal(value)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, name=texts)
    def rename_author(self, index: int, key: int, name: str | None) -> None:
        def do(session: Session) -> None:
            author = session.get(self.Author, key)
            if author is not None:
                author.name = name

        self.attempt(index, do)

    @rule(index=indexes, key=keys, mine=st.none() | st.integers(0, 2), name=st.sampled_from(["embedding", "later"]))
    def set_by_hand(self, index: int, key: int, mine: int | None, name: str) -> None:
        def do(session: Session) -> None:
            article = session.get(self.Article, key)
            if article is not None:
                setattr(article, name, None if mine is None else MINE[mine])

        self.attempt(index, do)

    @rule(index=indexes, key=keys, name=st.sampled_from(["embedding_fingerprint", "later_fingerprint"]))
    def forget_fingerprint(self, index: int, key: int, name: str) -> None:
        def do(session: Session) -> None:
            article = session.get(self.Article, key)
            if article is not None:
                setattr(article, name, None)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, author=st.none() | keys, by_key=st.booleans())
    def set_author(self, index: int, key: int, author: int | None, by_key: bool) -> None:
        def do(session: Session) -> None:
            article = session.get(self.Article, key)
            if article is None:
                return
            if by_key:
                article.author_id = author
            else:
                article.author = None if author is None else session.get(self.Author, author)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, author=keys)
    def take_from_author(self, index: int, key: int, author: int) -> None:
        def do(session: Session) -> None:
            found = session.get(self.Author, author)
            if found is not None and found.articles:
                found.articles.remove(found.articles[key % len(found.articles)])

        self.attempt(index, do)

    @rule(index=indexes, key=keys, author=keys)
    def give_to_author(self, index: int, key: int, author: int) -> None:
        def do(session: Session) -> None:
            found, article = session.get(self.Author, author), session.get(self.Article, key)
            if found is not None and article is not None and article not in found.articles:
                found.articles.append(article)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, word=words)
    def comment(self, index: int, key: int, word: str) -> None:
        def do(session: Session) -> None:
            article = session.get(self.Article, key)
            if article is not None:
                self.next_comment += 1
                article.comments.append(self.Comment(id=self.next_comment, word=word))

        self.attempt(index, do)

    @rule(
        index=indexes,
        key=keys,
        other=keys,
        how=st.sampled_from(["edit", "remove", "delete", "move", "give"]),
        word=words,
    )
    def change_comment(self, index: int, key: int, other: int, how: str, word: str) -> None:
        def do(session: Session) -> None:
            article, another = session.get(self.Article, key), session.get(self.Article, other)
            if article is None or not article.comments:
                return
            comment = article.comments[0]
            if how == "edit":
                comment.word = word
            elif how == "remove":
                article.comments.remove(comment)
            elif how == "delete":
                session.delete(comment)
            elif another is not None and another is not article:
                if how == "move":
                    comment.article_id = another.id
                else:
                    another.comments.append(comment)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, is_author=st.booleans())
    def delete_object(self, index: int, key: int, is_author: bool) -> None:
        def do(session: Session) -> None:
            found = session.get(self.Author if is_author else self.Article, key)
            if found is not None:
                session.delete(found)

        self.attempt(index, do)

    @rule(index=indexes, key=keys, title=texts)
    def replace_article(self, index: int, key: int, title: str | None) -> None:
        def do(session: Session) -> None:
            found = session.get(self.Article, key)
            if found is not None and type(found) is self.Article:
                session.delete(found)
                session.add(self.Article(id=key, title=title))

        self.attempt(index, do)

    @rule(index=indexes, key=keys, new=keys, is_author=st.booleans())
    def change_key(self, index: int, key: int, new: int, is_author: bool) -> None:
        def do(session: Session) -> None:
            class_ = self.Author if is_author else self.Article
            found = session.get(class_, key)
            if found is not None and session.get(class_, new) is None:
                found.id = new

        self.attempt(index, do)

    @rule(index=indexes, key=keys, title=texts)
    def merge(self, index: int, key: int, title: str | None) -> None:
        def do(session: Session) -> None:
            found = session.get(self.Article, key)
            if found is None or type(found) is self.Article:
                session.merge(self.Article(id=key, title=title))

        self.attempt(index, do)

    @rule(index=indexes, other=keys, how=st.sampled_from(["refresh", "expire", "expunge", "expire_all"]))
    def forget(self, index: int, other: int, how: str) -> None:
        def do(session: Session) -> None:
            found = session.get(self.Article, other)
            if how == "expire_all":
                session.flush()
                session.expire_all()
            elif found is not None:
                getattr(session, how)(found)

        self.attempt(index, do)

    # Statements.

    @rule(index=indexes, key=keys, value=texts, by_core=st.booleans())
    def update_articles(self, index: int, key: int, value: str | None, by_core: bool) -> None:
        def do(session: Session) -> None:
            session.flush()
            self.by_statement(index, session, "article", select(self.Article.id).where(self.Article.id <= key))
            if by_core:
                table = self.db.tables["article"]
                session.execute(update(table).where(table.c.id <= key).values(title=value))
            else:
                session.execute(update(self.Article).where(self.Article.id <= key).values(title=value))

        self.attempt(index, do)

    @rule(index=indexes, key=keys, value=texts)
    def update_authors(self, index: int, key: int, value: str | None) -> None:
        def do(session: Session) -> None:
            session.flush()
            self.by_statement(index, session, "article", select(self.Article.id).where(self.Article.author_id == key))
            session.execute(update(self.Author).where(self.Author.id == key).values(name=value))

        self.attempt(index, do)

    @rule(index=indexes, key=keys, entity=st.sampled_from(["author", "article", "comment"]))
    def delete_rows(self, index: int, key: int, entity: str) -> None:
        def do(session: Session) -> None:
            session.flush()
            touched = {
                "author": select(self.Article.id).where(self.Article.author_id == key),
                "comment": select(self.Comment.article_id).where(self.Comment.id % 5 == key % 5),
            }
            if entity in touched:
                self.by_statement(index, session, "article", touched[entity])
            table = self.db.tables[entity]
            where = table.c.id % 5 == key % 5 if entity == "comment" else table.c.id == key
            session.execute(delete(table).where(where))
            session.expire_all()

        self.attempt(index, do)

    @rule(index=indexes, key=keys, title=texts, how=st.sampled_from(["mappings", "insert", "objects"]))
    def insert_rows(self, index: int, key: int, title: str | None, how: str) -> None:
        def do(session: Session) -> None:
            session.flush()
            row = {"id": key, "title": title}
            if how == "mappings":
                session.bulk_insert_mappings(self.Article, [row])  # type: ignore[arg-type]
            elif how == "objects":
                session.bulk_save_objects([self.Article(**row)])
            else:
                session.execute(insert(self.Article), [row])
            self.by_bulk[index].add(("article", key))

        self.attempt(index, do)

    # Transactions.

    @rule(index=indexes)
    def flush(self, index: int) -> None:
        self.attempt(index, lambda s: s.flush())

    @rule(index=indexes)
    def commit(self, index: int) -> None:
        if self.attempt(index, lambda s: s.commit()):
            self.savepoints[index].clear()
            self.unnoticed |= self.by_bulk[index]
            self.by_bulk[index].clear()

    @rule(index=indexes)
    def rollback(self, index: int) -> None:
        self.give_up(index)

    @rule(index=indexes)
    def begin_nested(self, index: int) -> None:
        def do(session: Session) -> None:
            savepoint = session.begin_nested()
            self.savepoints[index].append((savepoint, self._count(session)))

        self.attempt(index, do)

    @precondition(lambda self: any(self.savepoints))
    @rule(index=indexes, keep=st.booleans())
    def end_nested(self, index: int, keep: bool) -> None:
        if not self.savepoints[index]:
            return
        savepoint, before = self.savepoints[index].pop()

        def do(session: Session) -> None:
            if keep:
                savepoint.commit()
                return
            savepoint.rollback()
            with session.no_autoflush:
                assert self._count(session) == before, "a savepoint left entries"

        self.attempt(index, do)

    def _count(self, session: Session) -> int:
        return int(session.scalar(select(func.count()).select_from(self.db.base.outbox)) or 0)

    # Workers.

    @rule()
    def work(self) -> None:
        try:
            self.db.worker.run_once()
        except DBAPIError as error:
            if not _is_about_locks(error):
                raise

    @rule()
    def settle(self) -> None:
        for index in (0, 1):
            self.commit(index)
        self.look()

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.open[0].close()
            self.open[1].close()

    def look(self) -> None:
        """Let a worker do what is left, and see that all is as it should be."""
        for index in (0, 1):
            self.open[index].rollback()
        self.db.worker.run(until_empty=True)
        assert self.db.entries() == []
        stale = self.db.stale()
        surprising = {one for one in stale if self.db.triggers or one[:2] not in self.unnoticed}
        assert not surprising, f"stale: {surprising}"
        report = check(self.db.sessions, fix=True)
        assert sum(c.rows - c.current for c in report.columns) == len(stale), (report, stale)
        if stale:
            self.db.worker.run(until_empty=True)
            assert self.db.stale() == set()
            assert self.db.entries() == []
        self.unnoticed.clear()


def _is_about_locks(error: DBAPIError) -> bool:
    said = str(error.orig)
    return any(part in said for part in ("locked", "lock timeout", "deadlock detected"))


@pytest.fixture(params=["listener", "both"])
def database(request: pytest.FixtureRequest, backend: Backend) -> Iterator[Database]:
    """A database with tracked sessions, with or without triggers."""
    made = Database(backend, triggers=request.param == "both")
    yield made
    untrack(made.sessions)


@pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
def test_every_row_is_current_after_any_program(database: Database) -> None:
    run_state_machine_as_test(
        lambda: Program(database),
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate] + [Phase.shrink] * SHRINK,
            suppress_health_check=list(HealthCheck),
        ),
    )
