"""Tracking begins and ends with its pair of calls, and touches nothing else."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_vector.embedding import Model
from sqla_vector.exc import EmbedderError, InvalidOption, VectorError
from sqla_vector.tracking import track, tracking_of, untrack
from tests.support.backends import AnyEngine, Backend
from tests.tracking.models import CountingEmbedder, article_models

SYNC = pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
ASYNC = pytest.mark.backends("asyncpg", "psycopg_async", "aiosqlite")
SMALL = pytest.mark.backends("sqlite_stdlib", "pysqlite3")


class Place:
    """A database with articles, and a way to undo what a test tracks."""

    def __init__(self, backend: Backend, engine: AnyEngine) -> None:
        self.backend, self.base, self.embedder = backend, article_models(), CountingEmbedder()
        self.engine: Any = engine
        self.tracked: list[Any] = []
        backend.create_all(engine, self.base.metadata)

    def track(self, sessions: Any, **options: Any) -> Any:
        """Track sessions until the test ends."""
        options = {"embedders": {"counting": self.embedder}, "models": self.base, **options}
        found = track(sessions, **options)
        self.tracked.append(sessions)
        return found

    def add(self, session: Session, title: str = "a") -> Any:
        """Write an article, and return its fingerprint."""
        article = self.base.Article(title=title)
        session.add(article)
        session.flush()
        found = article.embedding_fingerprint
        session.rollback()
        return found


@pytest.fixture
def place(backend: Backend, engine: AnyEngine) -> Iterator[Place]:
    made = Place(backend, engine)
    yield made
    for sessions in made.tracked:
        untrack(sessions)


def test_importing_listens_to_nothing() -> None:
    program = (
        "from sqlalchemy import event\n"
        "from sqlalchemy.orm import Session, Mapper\n"
        "heard = []\n"
        "listen = event.listen\n"
        "event.listen = lambda *args, **kw: (heard.append(args), listen(*args, **kw))\n"
        "event.listens_for = lambda *args, **kw: (heard.append(args), lambda function: function)[1]\n"
        "import sqla_vector.tracking, sqla_vector.embedding\n"
        "# SQLAlchemy listens to columns of its own.\n"
        "assert [args for args in heard if isinstance(args[0], type)] == [], heard\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@SYNC
def test_a_sessionmaker_is_tracked_until_it_is_not(place: Place) -> None:
    maker, other = sessionmaker(place.engine), sessionmaker(place.engine)
    with maker() as session, other() as stranger, Session(place.engine) as plain:
        assert place.add(session) is None
        place.track(maker)
        assert tracking_of(maker) is not None
        assert place.add(session) is not None  # also those that it has made before
        assert place.add(stranger) is place.add(plain) is None
        untrack(maker)
        assert tracking_of(maker) is None
        assert place.add(session) is None
        untrack(maker)


@SMALL
def test_whatever_makes_sessions_is_tracked(place: Place) -> None:
    class Own(Session):
        pass

    class Below(Own):
        pass

    one = Session(place.engine)
    scoped = scoped_session(sessionmaker(place.engine))
    ways: list[tuple[Any, Callable[[], Session]]] = [
        (Own, lambda: Own(place.engine)),
        (Own, lambda: Below(place.engine)),
        (Own, lambda: sessionmaker(place.engine, class_=Below)()),
        (scoped, scoped),
        (one, lambda: one),
    ]
    for sessions, make in ways:
        place.track(sessions)
        with make() as session, Session(place.engine) as stranger:
            assert place.add(session) is not None
            assert place.add(stranger) is None
        untrack(sessions)
        with make() as session:
            assert place.add(session) is None
    scoped.remove()


@SMALL
def test_all_sessions_are_tracked_by_their_class(place: Place) -> None:
    place.track(Session)
    try:
        with sessionmaker(place.engine)() as session:
            assert place.add(session) is not None
    finally:
        untrack(Session)
    with Session(place.engine) as session, sessionmaker(place.engine)() as made:
        assert place.add(session) is place.add(made) is None


@ASYNC
def test_asynchronous_sessions_are_tracked(place: Place) -> None:
    class Own(AsyncSession):
        pass

    class Configured(AsyncSession):
        sync_session_class = type("Sync", (Session,), {})

    own = Configured.sync_session_class
    maker = async_sessionmaker(place.engine)
    custom = async_sessionmaker(place.engine, class_=Configured)
    ways: list[tuple[Any, Callable[[], AsyncSession]]] = [
        (maker, maker),
        (custom, custom),
        (Own, lambda: Own(place.engine)),
        (Configured, lambda: Configured(place.engine)),
        (Own, lambda: async_sessionmaker(place.engine, class_=Own)()),
    ]

    async def add(session: AsyncSession) -> Any:
        async with session:
            return await session.run_sync(place.add)

    for sessions, make in ways:
        place.track(sessions)
        assert place.backend.wait(add(make())) is not None
        assert place.backend.wait(add(AsyncSession(place.engine))) is None
        untrack(sessions)
        assert place.backend.wait(add(make())) is None
        assert maker.kw.get("sync_session_class") is custom.kw.get("sync_session_class") is None
        assert "sync_session_class" not in vars(Own)
        assert Configured.sync_session_class is own


@ASYNC
def test_one_asynchronous_session_is_tracked(place: Place) -> None:
    async def run() -> tuple[Any, Any]:
        async with AsyncSession(place.engine) as session, AsyncSession(place.engine) as other:
            place.track(session)
            return await session.run_sync(place.add), await other.run_sync(place.add)

    found, not_found = place.backend.wait(run())
    assert found is not None
    assert not_found is None


@SMALL
def test_sessions_are_tracked_once(place: Place) -> None:
    class Own(Session):
        pass

    maker = sessionmaker(place.engine, class_=Own)
    again = [
        (maker, [maker, scoped_session(maker), Own, maker.class_, Session]),
        (Own, [maker, Own, Session, Own(place.engine)]),
        (Session, [maker, Own, Session(place.engine)]),
    ]
    for first, others in again:
        place.track(first)
        for other in others:
            with pytest.raises(InvalidOption, match="tracked already"):
                place.track(other)
        with sessionmaker(place.engine, class_=type(maker()))() as session:
            place.add(session)
        untrack(first)
    assert len(place.embedder.calls) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"embedders": []}, "embedders= is a dict"),
        ({"embedders": {"": Model("m", "1")}}, "embedders= is a dict"),
        ({"on_outage": "ignore"}, "on_outage="),
        ({"on_outage": "defer"}, "by an outbox"),
        ({"outbox": object()}, "outbox= is the table"),
    ],
)
def test_arguments_that_are_none_are_refused(options: dict[str, Any], said: str) -> None:
    maker = sessionmaker()
    with pytest.raises(InvalidOption, match=said):
        track(maker, **{"embedders": {"counting": CountingEmbedder()}, **options})
    assert tracking_of(maker) is None


@pytest.mark.parametrize(
    "sessions",
    [None, Session.flush, lambda: None, AsyncSession, int],
    ids=["None", "a method", "a function", "AsyncSession", "int"],
)
def test_what_is_no_session_is_refused(sessions: Any) -> None:
    with pytest.raises(InvalidOption):
        track(sessions, embedders={})


@SMALL
def test_an_embedder_of_another_dimension_or_of_none_is_refused_at_flush(place: Place) -> None:
    given: list[tuple[dict[str, Any], str]] = [
        ({"counting": CountingEmbedder(dim=7)}, "has 4 dimensions"),
        ({"counting": Model("counting", "1")}, "only the name of a model"),
        ({"other": CountingEmbedder()}, "needs an embedder named 'counting'"),
    ]
    for embedders, said in given:
        maker = sessionmaker(place.engine)
        place.track(maker, embedders=embedders)
        with maker() as session:
            session.add(place.base.Article(title="a"))
            with pytest.raises(InvalidOption, match=said):
                session.flush()
            session.rollback()
            # Rows without text need none.
            session.add(place.base.Article(views=1))
            session.commit()


@SMALL
def test_other_models_are_left_alone(place: Place) -> None:
    maker = sessionmaker(place.engine)
    place.track(maker, models=article_models())
    with maker() as session:
        assert place.add(session) is None
    untrack(maker)
    place.track(maker, models=[place.base.Article])
    with maker() as session:
        assert place.add(session) is not None


@SYNC
def test_a_failing_embedder_leaves_the_session_usable(place: Place) -> None:
    maker = sessionmaker(place.engine)
    place.track(maker)

    def refuse(texts: list[str]) -> None:
        raise EmbedderError("refused")

    with maker() as session:
        session.add(place.base.Author(id=1, name="Ada"))
        session.flush()
        place.embedder.fail = refuse
        article = place.base.Article(id=1, title="a")
        session.add(article)
        with pytest.raises(EmbedderError):
            session.commit()
        with pytest.raises(EmbedderError):
            session.scalars(select(place.base.Article)).all()  # by autoflush
        place.embedder.fail = None
        session.commit()
        assert session.get(place.base.Author, 1) is not None
        assert article.embedding_fingerprint is not None


@SMALL
def test_a_wrong_answer_of_an_embedder_writes_nothing(place: Place) -> None:
    maker = sessionmaker(place.engine)
    place.track(maker)
    place.embedder.vector = lambda text: [1.0, float("nan"), 0.0, 0.0]  # type: ignore[method-assign]
    with maker() as session:
        session.add(place.base.Article(title="a"))
        with pytest.raises(VectorError):
            session.flush()
        session.rollback()
        assert session.scalars(select(place.base.Article)).all() == []


@SMALL
def test_no_session_and_no_object_is_kept(place: Place) -> None:
    maker = sessionmaker(place.engine)
    place.track(maker)

    def run() -> list[weakref.ref[Any]]:
        session = maker()
        article = place.base.Article(title="a")
        session.add(article)
        session.commit()
        article.title = "b"
        session.commit()
        session.close()
        return [weakref.ref(session), weakref.ref(article)]

    gone = run()
    gc.collect()
    assert [one() for one in gone] == [None, None]


@SMALL
def test_no_maker_is_kept(place: Place) -> None:
    maker = sessionmaker(place.engine)
    track(maker, embedders={"counting": place.embedder}, models=place.base)
    gone = weakref.ref(maker)
    del maker
    gc.collect()
    assert gone() is None


@SYNC
def test_threads_flush_side_by_side(backend: Backend, place: Place) -> None:
    maker = sessionmaker(place.engine)
    place.track(maker)
    lock, errors = threading.Lock(), []

    def run(number: int) -> None:
        try:
            for turn in range(10):
                # SQLite has one writer at a time.
                with lock if backend.family == "sqlite" else threading.Lock(), maker.begin() as session:
                    session.add(place.base.Article(id=number * 100 + turn, title=f"{number} {turn}"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with maker() as session:
        rows = session.scalars(select(place.base.Article)).all()
        assert len(rows) == 40
        assert all((row.embedding == place.embedder.vector(row.title)).all() for row in rows)
