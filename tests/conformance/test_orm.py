"""What a Session does with vectors: units of work, loading, bulk statements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import ForeignKey, String, and_, bindparam, delete, func, insert, select, update
from sqlalchemy import inspect as inspect_instance
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defer,
    deferred,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
    undefer,
)

from sqla_vector import BitVector, HalfVector, SparseArray, SparseVector, Vector, l2_distance
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import statements_of


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    centre: Mapped[Any] = mapped_column(Vector(3), nullable=True)
    articles: Mapped[list[Article]] = relationship(back_populates="author", order_by="Article.id")


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(String(20))
    embedding: Mapped[Any] = mapped_column(Vector(3), nullable=True)
    half: Mapped[Any] = mapped_column(HalfVector(3), nullable=True)
    sparse: Mapped[Any] = mapped_column(SparseVector(3), nullable=True)
    bits: Mapped[Any] = mapped_column(BitVector(3), nullable=True)
    large: Mapped[Any] = deferred(mapped_column(Vector(4), nullable=True))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship(back_populates="articles")


def article(id_: int | None = 1, **more: Any) -> Article:
    return Article(
        **{
            "id": id_,
            "title": "one",
            "embedding": [1, 2, 3],
            "half": [1, 2, 3],
            "sparse": SparseArray(3, {1: 2.0}),
            "bits": [1, 0, 1],
            "large": [1, 2, 3, 4],
            **more,
        }
    )


@pytest.fixture
def created(backend: Backend, engine: AnyEngine) -> AnyEngine:
    backend.create_all(engine, Base.metadata)
    return engine


@pytest.fixture
def stored(backend: Backend, created: AnyEngine) -> AnyEngine:
    """An engine on a database with one article."""
    backend.run(created, lambda session: session.add(article()))
    return created


def test_an_added_object_can_be_found_again(backend: Backend, created: AnyEngine) -> None:
    def add(session: Session) -> int:
        added = article(None)
        session.add(added)
        session.flush()
        return added.id

    id_ = backend.run(created, add)
    found = backend.run(created, lambda session: session.get_one(Article, id_, options=[undefer(Article.large)]))
    assert found.embedding.tolist() == [1, 2, 3]
    assert found.half.tolist() == [1, 2, 3]
    assert found.sparse == SparseArray(3, {1: 2.0})
    assert found.bits.tolist() == [True, False, True]
    assert found.large.tolist() == [1, 2, 3, 4]


def test_assigning_an_equal_vector_emits_no_update(backend: Backend, stored: AnyEngine) -> None:
    def assign_equal(session: Session) -> None:
        found = session.get_one(Article, 1)
        found.embedding = np.array([1, 2, 3], ">f8")
        found.half = (1, 2, 3)
        found.sparse = [0, 2, 0]
        found.bits = [True, False, True]
        assert not session.is_modified(found)

    with statements_of(stored) as sent:
        backend.run(stored, assign_equal)
    assert [statement.split()[0] for statement in sent] == ["SELECT"]


def test_assigning_another_vector_updates_that_column_alone(backend: Backend, stored: AnyEngine) -> None:
    def assign_another(session: Session) -> None:
        found = session.get_one(Article, 1)
        found.embedding = [1, 2, 4]
        found.half = [1, 2, 3]

    def assign_null(session: Session) -> None:
        session.get_one(Article, 1).embedding = None

    for change, expected in ((assign_another, [1, 2, 4]), (assign_null, None)):
        with statements_of(stored) as sent:
            backend.run(stored, change)
        (statement,) = [statement for statement in sent if statement.startswith("UPDATE")]
        assert "embedding=" in statement
        assert "half=" not in statement
        found = backend.run(stored, lambda session: session.get_one(Article, 1))
        assert (None if found.embedding is None else found.embedding.tolist()) == expected
        assert found.half.tolist() == [1, 2, 3]


def test_editing_a_loaded_vector_in_place_is_an_error_not_a_lost_edit(backend: Backend, stored: AnyEngine) -> None:
    found = backend.run(stored, lambda session: session.get_one(Article, 1))
    for vector in (found.embedding, found.half, found.bits, found.sparse.values):
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 0


def test_merge_of_an_equal_object_emits_no_update(backend: Backend, stored: AnyEngine) -> None:
    def merge_equal(session: Session) -> None:
        given = article(embedding=np.array([1.0, 2.0, 3.0]))
        del given.large  # the merge of a deferred attribute sets it without loading it
        session.merge(given)

    with statements_of(stored) as sent:
        backend.run(stored, merge_equal)
    assert {statement.split()[0] for statement in sent} == {"SELECT"}

    with statements_of(stored) as sent:
        backend.run(stored, lambda session: session.merge(article(embedding=[9, 2, 3])))
    assert [statement.split()[0] for statement in sent].count("UPDATE") == 1
    found = backend.run(stored, lambda session: session.merge(Article(id=2, embedding=[5, 5, 5])))
    assert found.embedding == [5, 5, 5]
    ids = backend.run(stored, lambda session: session.scalars(select(Article.id).order_by(Article.id)).all())
    assert ids == [1, 2]


def test_refresh_and_expire_bring_back_what_is_stored(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        found = session.get_one(Article, 1)
        found.embedding = [9, 9, 9]
        session.refresh(found)
        assert found.embedding.tolist() == [1, 2, 3]
        found.half = [9, 9, 9]
        session.refresh(found, ["half"])
        assert found.half.tolist() == [1, 2, 3]
        session.expire(found, ["embedding"])
        assert "embedding" in inspect_instance(found).expired_attributes
        assert found.embedding.tolist() == [1, 2, 3]
        # What was given as a list is an array once it was read back.
        found.embedding = [4, 5, 6]
        session.flush()
        assert found.embedding == [4, 5, 6]
        session.expire(found)
        assert found.embedding.tolist() == [4, 5, 6]

    backend.run(stored, body)


def test_a_sql_expression_can_be_assigned(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        found = session.get_one(Article, 1)
        found.embedding = Article.embedding + np.ones(3)
        session.flush()
        assert found.embedding.tolist() == [2, 3, 4]

    backend.run(stored, body)


def test_rollback_and_savepoints_undo_vectors(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        found = session.get_one(Article, 1)
        savepoint = session.begin_nested()
        found.embedding = [9, 9, 9]
        session.flush()
        savepoint.rollback()
        assert found.embedding.tolist() == [1, 2, 3]

    backend.run(stored, body)


def test_a_deferred_vector_is_loaded_when_asked_for(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        found = session.scalars(select(Article)).one()
        assert "large" in inspect_instance(found).unloaded
        with statements_of(stored) as sent:
            assert found.large.tolist() == [1, 2, 3, 4]
        assert len(sent) == 1
        session.expunge_all()

        with statements_of(stored) as sent:
            found = session.scalars(select(Article).options(undefer(Article.large), defer(Article.embedding))).one()
            assert found.large.tolist() == [1, 2, 3, 4]
        assert len(sent) == 1
        assert "embedding" in inspect_instance(found).unloaded
        session.expunge_all()

        found = session.scalars(select(Article).options(load_only(Article.half))).one()
        assert {"embedding", "sparse", "bits", "large"} <= inspect_instance(found).unloaded
        session.expunge_all()

        found = session.scalars(select(Article).options(defer(Article.embedding, raiseload=True))).one()
        with pytest.raises(Exception, match="raiseload"):
            _ = found.embedding
        # An unloaded vector is set without being loaded.
        with statements_of(stored) as sent:
            found.large = [4, 3, 2, 1]
            session.flush()
        assert [statement.split()[0] for statement in sent] == ["UPDATE"]

    backend.run(stored, body)


def test_returning_gives_vectors_and_distances(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        columns = (Article.id, Article.embedding, Article.sparse, l2_distance(Article.embedding, [1, 2, 3]).label("d"))
        row = session.execute(
            insert(Article).values(id=2, embedding=[1, 2, 5], sparse=[0, 0, 1]).returning(*columns)
        ).one()
        assert (row.id, row.embedding.tolist(), row.sparse, row.d) == (2, [1, 2, 5], SparseArray(3, {2: 1.0}), 2.0)
        row = session.execute(
            update(Article).where(Article.id == 2).values(embedding=[1, 2, 4]).returning(*columns)
        ).one()
        assert (row.embedding.tolist(), row.d) == ([1, 2, 4], 1.0)
        added = session.scalars(insert(Article).returning(Article), [{"id": 3, "embedding": [7, 7, 7]}]).one()
        assert added.embedding.tolist() == [7, 7, 7]
        removed = session.execute(delete(Article).where(Article.id == 3).returning(Article.embedding)).scalar_one()
        assert removed.tolist() == [7, 7, 7]

    backend.run(stored, body)


def test_many_objects_are_inserted_in_batches(backend: Backend, created: AnyEngine) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)

    def add_without_keys(session: Session) -> list[int]:
        added = [Article(title=str(n), embedding=vector, bits=vector > 0) for n, vector in enumerate(vectors)]
        session.add_all(added)
        session.flush()
        return [one.id for one in added]

    def add_with_keys(session: Session) -> list[int]:
        added = [Article(id=1000 + n, title=str(n), embedding=v, bits=v > 0) for n, v in enumerate(vectors)]
        session.add_all(added)
        session.flush()
        return [one.id for one in added]

    for add in (add_without_keys, add_with_keys):
        with statements_of(created) as sent:
            ids = backend.run(created, add)
        # SQLAlchemy does not batch rows for which SQLite generates keys.
        if add is add_with_keys or backend.family == "postgresql":
            assert len(sent) == 1, "one statement for 50 objects"

        def read(session: Session, ids: list[int] = ids) -> list[Article]:
            return list(session.scalars(select(Article).where(Article.id.in_(ids)).order_by(Article.id)))

        found = backend.run(created, read)
        assert [one.title for one in found] == [str(n) for n in range(50)]
        for one, vector in zip(found, vectors, strict=True):
            assert one.embedding.tobytes() == vector.tobytes()
            assert one.bits.tolist() == (vector > 0).tolist()


def test_bulk_inserts_and_updates_of_the_orm(backend: Backend, created: AnyEngine) -> None:
    def body(session: Session) -> None:
        ids = session.scalars(
            insert(Article).returning(Article.id, sort_by_parameter_order=True),
            [{"title": str(n), "embedding": [n, 0, 0]} for n in range(20)],
        ).all()
        session.execute(update(Article), [{"id": id_, "embedding": [n, 1, 0]} for n, id_ in enumerate(ids)])
        found = session.execute(select(Article.id, Article.embedding).order_by(Article.id)).all()
        assert [(row.id, row.embedding.tolist()) for row in found] == [(id_, [n, 1, 0]) for n, id_ in enumerate(ids)]

        session.execute(
            update(Article).where(l2_distance(Article.embedding, [0, 1, 0]) < 2.5).values(embedding=[0, 0, 7]),
            execution_options={"synchronize_session": "fetch"},
        )
        changed = session.scalars(select(Article.title).where(Article.embedding == [0, 0, 7]).order_by(Article.id))
        assert changed.all() == ["0", "1", "2"]
        session.execute(update(Article).values(embedding=Article.embedding * [2, 2, 2]))
        assert session.scalars(select(Article.embedding).where(Article.title == "5")).one().tolist() == [10, 2, 0]
        session.execute(delete(Article).where(l2_distance(Article.embedding, [0, 0, 14]) == 0))
        assert session.scalar(select(func.count(Article.id))) == 17

        session.bulk_save_objects([Article(id=500, embedding=[5, 5, 5])])
        session.bulk_insert_mappings(Article.__mapper__, [{"id": 501, "embedding": [6, 6, 6]}])
        session.bulk_update_mappings(Article.__mapper__, [{"id": 500, "embedding": [5, 5, 6]}])
        found = session.execute(select(Article.id, Article.embedding).where(Article.id >= 500).order_by(Article.id))
        assert [(row.id, row.embedding.tolist()) for row in found] == [(500, [5, 5, 6]), (501, [6, 6, 6])]

    backend.run(created, body)


def test_an_update_evaluated_in_python_keeps_loaded_objects_right(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        found = session.get_one(Article, 1)
        session.execute(
            update(Article).where(Article.title == "one").values(embedding=[7, 8, 9], half=Article.half + np.ones(3)),
            execution_options={"synchronize_session": "auto"},
        )
        assert np.asarray(found.embedding).tolist() == [7, 8, 9]
        assert np.asarray(found.half).tolist() == [2, 3, 4]

    backend.run(stored, body)


def test_criteria_on_vectors_keep_loaded_objects_right(backend: Backend, created: AnyEngine) -> None:
    """Python cannot evaluate them on objects, so the rows are fetched; a wrong guess would leave stale objects."""

    def body(session: Session) -> None:
        session.add_all(article(n, embedding=[n, 2, 3], half=[n, 2, 3], title=str(n)) for n in (1, 2, 3))
        session.add(article(4, embedding=None, half=None, title="4"))
        session.flush()
        session.expire_all()
        loaded = {one.id: one for one in session.scalars(select(Article))}
        for criterion, expected in (
            (Article.embedding == [1, 2, 3], {1}),
            (Article.embedding != [1, 2, 3], {2, 3}),
            (~(Article.half == [1, 2, 3]), {2, 3}),
            (Article.embedding.in_([[1, 2, 3], [3, 2, 3]]), {1, 3}),
            (Article.half.not_in([[1, 2, 3]]), {2, 3}),
            (Article.embedding.is_(None), {4}),
            (Article.embedding.is_not(None), {1, 2, 3}),
            (and_(Article.embedding == None, Article.title == "4"), {4}),  # noqa: E711
            (Article.bits == [1, 0, 1], {1, 2, 3, 4}),
            (Article.sparse == SparseArray(3, {1: 2.0}), {1, 2, 3, 4}),
            (l2_distance(Article.embedding, [2, 2, 3]) < 0.5, {2}),
        ):
            session.execute(update(Article).values(title="old"), execution_options={"synchronize_session": "fetch"})
            session.execute(update(Article).where(Article.id == 4).values(title="4"))
            session.execute(update(Article).where(criterion).values(title="new"))
            assert {id_ for id_, one in loaded.items() if one.title == "new"} == expected, str(criterion)
        session.execute(delete(Article).where(Article.embedding == [2, 2, 3]))
        assert inspect_instance(loaded[2]).deleted
        assert session.scalars(select(Article.id).order_by(Article.id)).all() == [1, 3, 4]

    backend.run(created, body)


def test_relationships_load_vectors(backend: Backend, created: AnyEngine) -> None:
    def fill(session: Session) -> None:
        for n in range(4):
            articles = [Article(embedding=[n, m, 0], title=f"{n}{m}") for m in range(3)]
            session.add(Author(id=n + 1, name=str(n), centre=[n, 1, 0], articles=articles))

    backend.run(created, fill)

    def body(session: Session) -> None:
        for option in (selectinload(Author.articles), subqueryload(Author.articles), joinedload(Author.articles)):
            session.expunge_all()
            statement = select(Author).options(option).order_by(Author.id).limit(2)
            authors = session.scalars(statement).unique().all()
            assert [author.id for author in authors] == [1, 2]
            with statements_of(created) as sent:
                loaded = [[a.embedding.tolist() for a in author.articles] for author in authors]
            assert sent == []
            assert loaded == [[[n, m, 0] for m in range(3)] for n in range(2)]

        # The limit is of the outer rows, sorted by a distance.
        session.expunge_all()
        d = Article.embedding.l2_distance([3, 2, 0])
        nearest = select(Article).options(joinedload(Article.author)).order_by(d, Article.id.desc()).limit(2)
        found = [(a.title, a.author.name) for a in session.scalars(nearest) if a.author]
        assert found == [("32", "3"), ("31", "3")]
        # Eager loading around a subquery that sorts by the distance.
        d = l2_distance(Author.centre, [3, 1, 0])
        centres = select(Author).options(joinedload(Author.articles)).order_by(d).limit(2)
        assert [author.id for author in session.scalars(centres).unique()] == [4, 3]
        # A lazy load.
        session.expunge_all()
        one = session.get_one(Author, 3)
        if backend.is_async:
            session.refresh(one, ["articles"])
        assert [a.embedding.tolist() for a in one.articles] == [[2, 0, 0], [2, 1, 0], [2, 2, 0]]

    backend.run(created, body)


def test_yield_per_and_server_side_cursors(backend: Backend, created: AnyEngine) -> None:
    rows = [{"id": n, "embedding": [n, 0, 1]} for n in range(1, 41)]

    def body(session: Session) -> None:
        session.execute(insert(Article), rows)
        d = Article.embedding.l2_distance([0, 0, 1]).label("d")
        by_distance = select(Article, d).order_by(d)
        for options in ({"yield_per": 7}, {"stream_results": True, "max_row_buffer": 5}, {"stream_results": True}):
            session.expunge_all()
            found = [
                (a.id, a.embedding.tolist(), d) for a, d in session.execute(by_distance, execution_options=options)
            ]
            assert found == [(n, [n, 0, 1], float(n)) for n in range(1, 41)]
        sizes = [len(part) for part in session.scalars(select(Article)).partitions(15)]
        assert sizes == [15, 15, 10]

    backend.run(created, body)


@pytest.mark.backends(is_async=True)
def test_an_async_session_streams_vectors(backend: Backend, created: AnyEngine) -> None:
    assert isinstance(created, AsyncEngine)

    async def body() -> list[float]:
        async with AsyncSession(created) as session:
            session.add_all(Article(id=n, embedding=[n, 0, 0]) for n in range(1, 30))
            await session.commit()
            statement = select(Article).order_by(Article.embedding.l2_distance([0, 0, 0]))
            found = await session.stream_scalars(statement, execution_options={"yield_per": 4})
            return [float(one.embedding[0]) async for one in found]

    assert backend.wait(body()) == [float(n) for n in range(1, 30)]


def test_compiled_statements_are_cached_and_take_new_values(backend: Backend, stored: AnyEngine) -> None:
    def body(session: Session) -> None:
        seen: list[float] = []
        for query in ([1, 2, 3], [1, 2, 4], [1, 2, 7]):
            result = session.connection().execute(select(Article.__table__.c.embedding.l2_distance(query)))
            cached = result.context.cache_hit.name  # type: ignore[attr-defined]
            seen.append(result.scalar_one())
        assert seen == [0.0, 1.0, 4.0]
        assert cached == "CACHE_HIT"
        # A statement that differs in nothing but the metric.
        by_metric = {
            metric: session.execute(select(getattr(Article.embedding, metric)([1, 2, 4]))).scalar_one()
            for metric in ("l2_distance", "cosine_distance", "max_inner_product", "l1_distance")
        }
        assert by_metric == pytest.approx(
            {
                "l2_distance": 1.0,
                "cosine_distance": 1 - 17 / (14 * 21) ** 0.5,
                "max_inner_product": -17,
                "l1_distance": 1,
            },
            rel=1e-5,
        )
        parameter = bindparam("v", type_=Vector(3))
        statement = select(Article.id).where(Article.embedding == parameter)
        assert session.scalars(statement, {"v": [1, 2, 3]}).all() == [1]
        assert session.scalars(statement, {"v": [1, 2, 4]}).all() == []

    backend.run(stored, body)
