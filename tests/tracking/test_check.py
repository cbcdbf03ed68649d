"""Whether every row has the vector of its text, and entries for those that have not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Integer, String, Table, cast, delete, event, insert, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, Model, embedding_column, fingerprint
from sqla_vector.exc import EmbedderError, InvalidOption
from sqla_vector.tracking import Report, acheck, check, is_current, outbox_table, untrack
from sqla_vector.tracking.outbox import put
from tests.tracking.conftest import Tracked
from tests.tracking.models import POISON, CountingEmbedder, article_models, picky_models

Make = Callable[..., Tracked]

MODEL = Model("counting", "1")
MINE = np.array([1, 2, 3, 4], np.float32)


def run_check(t: Tracked, **options: Any) -> Report:
    """Check the articles."""
    options.setdefault("models", t.base)
    return t.backend.wait(acheck(t.sessions, **options)) if t.backend.is_async else check(t.sessions, **options)


def put_rows(t: Tracked, rows: list[dict[str, Any]]) -> None:
    """Write rows that nobody listens to."""
    keys = dict.fromkeys(["title", "body", "embedding", "embedding_fingerprint"])
    values = [{**keys, "id": number, "views": 0, **row} for number, row in enumerate(rows, start=1)]
    t.untracked(lambda s: s.execute(insert(t.base.Article), values) if values else None)


ROWS: list[dict[str, Any]] = [
    {"title": "current", "embedding": MINE, "embedding_fingerprint": fingerprint(MODEL, "current")},
    {"title": "no vector"},
    {"title": "no fingerprint", "embedding": MINE},
    {"title": "no vector but", "embedding_fingerprint": fingerprint(MODEL, "no vector but")},
    {"title": "edited", "embedding": MINE, "embedding_fingerprint": fingerprint(MODEL, "before")},
    {"title": "old", "embedding": MINE, "embedding_fingerprint": fingerprint(Model("counting", "0"), "old")},
    {"title": "other", "embedding": MINE, "embedding_fingerprint": fingerprint(Model("other", "1"), "other")},
    {"title": " ", "embedding": MINE, "embedding_fingerprint": fingerprint(MODEL, "gone")},
    {"title": None, "embedding_fingerprint": fingerprint(MODEL, "gone")},
    {},
    {"title": "foreign", "embedding": MINE, "embedding_fingerprint": "written by somebody else"},
]


def test_every_row_is_counted_as_what_it_is(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, ROWS)
    report = run_check(t)
    (column,) = report.columns
    assert (column.column, column.entity, column.model) == ("Article.embedding", "article", "counting@1")
    assert (column.rows, column.current, column.missing, column.stale) == (11, 2, 3, 1)
    assert (column.orphaned, column.invalid, column.other_model) == (2, 0, 3)
    assert column.other_models == {"counting@0": 1, "other@1": 1, "unknown": 1}
    assert column.unnoticed == 9
    assert column.examples == {
        "missing": ["[2]", "[3]", "[4]"],
        "stale": ["[5]"],
        "other_model": ["[6]", "[7]", "[11]"],
        "orphaned": ["[8]", "[9]"],
    }
    assert not report.is_clean
    assert str(report).splitlines()[0].startswith("Article.embedding: 2 of 11 rows current, 3 missing, 1 stale, ")
    assert json.loads(json.dumps(report.as_dict()))["columns"][0]["missing"] == 3


def test_nothing_is_clean(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    report = run_check(t)
    assert report.is_clean
    assert (report.columns[0].rows, report.unnoticed, report.fixed) == (0, 0, 0)


def test_what_no_worker_would_see_gets_one_entry(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, ROWS)
    t.untracked(lambda s: s.execute(update(t.base.Article).where(t.base.Article.id == 2).values(title="edited")))
    t.run(lambda s: setattr(s.get(t.base.Article, 5), "body", "noticed"))
    assert [entry.row_key for entry in t.entries()] == ["[5]"]
    assert run_check(t).unnoticed == 8
    assert run_check(t, fix=True).fixed == 8
    assert sorted(entry.row_key for entry in t.entries()) == sorted(f"[{n}]" for n in range(2, 12) if n != 10)
    again = run_check(t, fix=True)
    assert (again.fixed, again.unnoticed, again.backlogs[0].pending) == (0, 0, 9)
    t.work()
    report = run_check(t)
    assert report.is_clean
    assert report.columns[0].current == 11


def test_columns_made_at_flush_are_fixed_through_the_outbox(tracked: Make) -> None:
    t = tracked(article_models("flush"), CountingEmbedder())
    put_rows(t, ROWS)
    assert run_check(t, fix=True).fixed == 9
    t.work()
    assert run_check(t).is_clean


def test_a_row_that_failed_for_good_gets_no_second_entry(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        raise EmbedderError("no")

    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    put_rows(t, [{"title": "poison"}])
    run_check(t, fix=True)
    t.work(attempts=1)
    report = run_check(t, fix=True)
    assert (report.fixed, report.backlogs[0].dead, report.backlogs[0].pending) == (0, 1, 0)
    assert not report.is_clean
    assert report.unnoticed == 0


def test_entries_whose_row_is_gone_are_counted(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in range(1, 4)))
    t.untracked(lambda s: s.execute(delete(t.base.Article).where(t.base.Article.id == 2)))

    def add_nonsense(session: Session) -> None:
        values = {"entity": "article", "row_key": "no key", "created_at": 0, "available_at": 0}
        session.execute(insert(t.base.outbox).values(values))

    t.untracked(add_nonsense)
    backlog = run_check(t).backlogs[0]
    assert (backlog.entity, backlog.pending, backlog.without_row) == ("article", 4, 2)
    assert backlog.examples == {"without_row": ["[2]", "no key"]}


def test_texts_that_cannot_be_embedded_are_named(tracked: Make) -> None:
    def text_of(page: Any) -> str | None:
        if page.title == "bad":
            raise KeyError(page.title)
        return str(page.title)

    class Base(DeclarativeBase):
        outbox: Table

    class Page(Base):
        __tablename__ = "page"
        lang: Mapped[str] = mapped_column(String(2), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = embedding_column(
            Vector(4), source=text_of, depends_on=("title",), embedder="counting", when="worker"
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata)
    t = tracked(Base, CountingEmbedder())
    rows = [{"lang": lang, "number": n, "title": "bad" if n == 2 else "good"} for lang in ("de", "en") for n in (1, 2)]
    t.untracked(lambda s: s.execute(insert(Page.__table__), rows))
    (column,) = run_check(t, fix=True).columns
    assert (column.rows, column.missing, column.invalid) == (4, 2, 2)
    assert column.examples["invalid"] == ['["de",2]', '["en",2]']
    (reason,) = set(column.reasons.values())
    assert re.fullmatch(r"the source failed: KeyError in test_check.py, line \d+", reason)
    assert list(column.reasons) == column.examples["invalid"]
    t.work()
    report = run_check(t)
    assert (report.columns[0].current, report.backlogs[0].dead) == (2, 2)


def test_texts_of_related_rows_are_checked(tracked: Make) -> None:
    base = article_models("worker", related=True)
    t = tracked(base, CountingEmbedder())
    t.run(lambda s: s.add_all(base.Article(title=f"t{n}", author=base.Author(name=f"a{n}")) for n in range(3)))
    t.work()
    assert run_check(t).is_clean
    t.untracked(lambda s: s.execute(update(base.Author).where(base.Author.name == "a1").values(name="b")))
    assert run_check(t, fix=True).columns[0].stale == 1
    t.work()
    assert run_check(t).is_clean


def test_rows_are_read_in_batches_and_progress_is_told(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, [{"title": f"t{n}"} for n in range(2345)])
    seen: list[Any] = []
    report = run_check(t, on_progress=seen.append, fix=True)
    assert [(one.column, one.done, one.total) for one in seen] == [
        ("Article.embedding", done, 2345) for done in (1000, 2000, 2345)
    ]
    assert seen[-1].seconds_left == 0
    assert (report.columns[0].missing, report.fixed, len(t.entries())) == (2345, 2345, 2345)


@pytest.mark.backends(is_async=True)
def test_progress_may_be_told_to_a_coroutine(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, [{"title": "t"}])
    seen: list[Any] = []

    async def tell(progress: Any) -> None:
        seen.append(progress)

    run_check(t, on_progress=tell)
    assert [one.done for one in seen] == [1]


def test_columns_are_chosen(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    assert len(run_check(t, columns=[t.base.Article.embedding, t.base.Article.embedding]).columns) == 1
    for columns in ([t.base.Article.title], ["embedding"], [None]):
        with pytest.raises(InvalidOption, match=r"such as Article\.embedding"):
            run_check(t, columns=columns)
    for columns in ("embedding", 7):
        with pytest.raises(InvalidOption, match="columns= is a list"):
            run_check(t, columns=columns)


def test_a_session_is_checked_in_its_own_transaction(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    article = t.base.Article

    async def asynchronous() -> Report:
        async with t.sessions() as session:
            await session.execute(insert(article), {"id": 1, "title": "a", "views": 0})
            report = await acheck(session, models=t.base, fix=True)
            await session.rollback()
            return report

    if t.backend.is_async:
        report = t.backend.wait(asynchronous())
    else:
        with t.sessions() as session:
            session.execute(insert(article), {"id": 1, "title": "a", "views": 0})
            report = check(session, models=t.base, fix=True)
            session.rollback()
    assert (report.columns[0].missing, report.fixed) == (1, 1)
    assert (run_check(t).columns[0].rows, t.entries()) == (0, [])


def test_bad_arguments_are_refused(tracked: Make) -> None:
    base = article_models("worker")
    t = tracked(base, CountingEmbedder(), outbox=None)
    with pytest.raises(InvalidOption, match="fix=True writes entries"):
        run_check(t, fix=True)
    with pytest.raises(InvalidOption, match="fix must be True or False"):
        run_check(t, fix=1)
    with pytest.raises(InvalidOption, match="outbox= is the table"):
        run_check(t, outbox="vector_outbox")
    with pytest.raises(InvalidOption, match="needs an embedder named 'counting'"):
        run_check(t, embedders={"another": MODEL})
    assert run_check(t).columns[0].unnoticed is None
    if t.backend.is_async:
        with pytest.raises(InvalidOption, match="await acheck"):
            check(t.sessions, models=base)
    else:
        with pytest.raises(InvalidOption, match=r"call check\(\)"):
            t.backend.wait(acheck(t.sessions, models=base))
    untrack(t.sessions)
    with pytest.raises(InvalidOption, match="has no embedders"):
        run_check(t)
    with pytest.raises(InvalidOption, match="expected a sessionmaker"):
        check("sqlite://", embedders={"counting": MODEL})


def test_one_row_is_looked_at_in_one_query(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    article = t.base.Article
    put_rows(t, ROWS)
    statements: list[str] = []
    engine = t.engine.sync_engine if t.backend.is_async else t.engine
    event.listen(engine, "before_cursor_execute", lambda c, cursor, stmt, *rest: statements.append(stmt))

    def look(session: Session) -> list[int]:
        rows = session.scalars(select(article).order_by(article.id)).all()
        statements.clear()
        found = [row.id for row in rows if is_current(session, row, article.embedding)]
        assert len([stmt for stmt in statements if stmt.startswith("SELECT")]) == len(rows)
        assert found == [row.id for row in rows if is_current(session, row, "embedding")]
        return found

    assert t.run(look) == [1, 10]


def test_one_row_is_looked_at_as_the_database_has_it(tracked: Make) -> None:
    t = tracked(article_models("flush"), CountingEmbedder())
    article = t.base.Article
    t.run(lambda s: s.add(article(id=1, title="a")))

    def look(session: Session) -> None:
        row = session.get_one(article, 1)
        session.execute(update(article).values(title="b"), execution_options={"synchronize_session": False})
        assert row.title == "a"
        assert not is_current(session, row, "embedding")
        session.execute(delete(article), execution_options={"synchronize_session": False})
        assert not is_current(session, row, "embedding")
        with pytest.raises(InvalidOption, match="flush the object first"):
            is_current(session, article(title="new"), "embedding")
        with pytest.raises(InvalidOption, match="expected an attribute"):
            is_current(session, row, "title")
        with pytest.raises(InvalidOption, match="expected an attribute"):
            is_current(session, row, "nothing")

    t.run(look)


def test_one_row_is_looked_at_with_any_session(tracked: Make) -> None:
    t = tracked(article_models("flush"), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))

    def look(session: Session) -> None:
        row = session.get_one(t.base.Article, 1)
        assert is_current(session, row, "embedding", embedders={"counting": MODEL})
        assert not is_current(session, row, "embedding", embedders={"counting": Model("counting", "2")})
        with pytest.raises(InvalidOption, match="has no embedders"):
            is_current(session, row, "embedding")

    t.untracked(look)


@pytest.mark.backends(is_async=True)
def test_one_row_is_looked_at_through_run_sync(tracked: Make) -> None:
    t = tracked(article_models("flush"), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))

    async def look() -> bool:
        async with t.sessions() as session:
            assert isinstance(session, AsyncSession)
            return bool(await session.run_sync(is_current, await session.get(t.base.Article, 1), "embedding"))

    assert t.backend.wait(look())


TEXTS = st.none() | st.sampled_from(["", " ", "a", "b", "\u00e9", "e\u0301"])
STORED = st.sampled_from([None, "counting@1", "counting@0"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS, STORED, TEXTS, st.booleans()), max_size=12), noted=st.sets(st.integers(1, 12))
)
@pytest.mark.backends("psycopg", "pysqlite3")
def test_every_row_is_current_or_has_one_entry_after_a_fix(
    tracked: Make, rows: list[tuple[Any, Any, str | None, str | None, bool]], noted: set[int]
) -> None:
    t = _fresh(tracked)
    values = []
    for title, body, model, of, has_vector in rows:
        mark = fingerprint(Model(*model.split("@")), of) if model else None
        values.append(
            {"title": title, "body": body, "embedding": MINE if has_vector else None, "embedding_fingerprint": mark}
        )
    put_rows(t, values)
    t.untracked(lambda s: put(s.connection(), t.base.outbox, [("article", f"[{n}]") for n in sorted(noted)]))
    run_check(t, fix=True)
    entries = [entry.row_key for entry in t.entries()]
    assert len(set(entries)) == len(entries)
    for number, (title, body, model, of, has_vector) in enumerate(rows, start=1):
        text = "\n\n".join(part for part in (title, body) if part and part.strip()) or None
        current = (
            (model == "counting@1" and of == text and has_vector)
            if text
            else (not has_vector and values[number - 1]["embedding_fingerprint"] is None)
        )
        assert (f"[{number}]" in entries) == (not current or number in noted)


_MADE: dict[Any, Tracked] = {}


def _fresh(tracked: Make) -> Tracked:
    """Return the same tracked sessions for all examples of one test, with empty tables."""
    if tracked not in _MADE:
        _MADE.clear()
        _MADE[tracked] = tracked(article_models("worker"), CountingEmbedder())
    t = _MADE[tracked]
    t.untracked(lambda s: [s.execute(delete(table)) for table in (t.base.outbox, t.base.Article.__table__)])
    return t


@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_a_row_that_cannot_be_read_is_invalid_and_hides_no_other(tracked: Make, error: type[Exception]) -> None:
    t = tracked(picky_models(error), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}") for n in range(1, 8)))
    t.work()
    t.run(lambda s: s.add(t.base.Article(id=8, title="title 8")))
    t.backend.run_connection(t.engine, lambda c: c.execute(POISON))
    report = run_check(t, fix=True)
    (found,) = report.columns
    assert (found.rows, found.current, found.invalid, found.missing) == (8, 6, 1, 1)
    assert found.reasons == {"[2]": f"the row cannot be read: {error.__name__}"}
    assert report.fixed == 1
    assert t.work(attempts=1).dead == 1


@pytest.mark.backends(family="postgresql", plugin=True)
def test_a_row_that_the_database_cannot_read_is_invalid_and_hides_no_other(tracked: Make) -> None:
    class Base(DeclarativeBase):
        outbox: Any

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        year: Mapped[int] = column_property(cast(literal_column("article.title"), Integer))
        embedding: Mapped[Any | None] = embedding_column(
            Vector(4), source=lambda a: str(a.year), depends_on=("title",), embedder="counting", when="worker"
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata)
    t = tracked(Base, CountingEmbedder())
    t.untracked(lambda s: s.execute(insert(Article), [{"id": n, "title": t} for n, t in enumerate(["1", "x", "3"])]))
    (found,) = run_check(t).columns
    assert (found.rows, found.invalid, found.missing) == (3, 1, 2)
    assert "invalid input syntax" in found.reasons["[1]"]
