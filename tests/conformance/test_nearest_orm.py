"""nearest() and the ORM: joins, aliases, loader options, inheritance, subqueries, and vectors in another table."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import ForeignKey, String, exists, func, inspect, select, union_all
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    defer,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    with_loader_criteria,
)

from sqla_vector import Vector, asearch, nearest, nearest_each, nearest_to, search, vector_index
from tests.support.brute_force import assert_equal, engine_that_indexes, make_vectors
from tests.support.brute_force import nearest as brute_force

DIM = 8
QUERY = np.random.default_rng(3).normal(size=DIM).astype(np.float32)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship(back_populates="author", order_by="Book.id")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    language: Mapped[str] = mapped_column(String(2))
    blurb: Mapped[str | None]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")
    chapters: Mapped[list[Chapter]] = relationship(back_populates="book", order_by="Chapter.id")
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM), info={"source": ("title", "blurb")})
    __table_args__ = (vector_index("ix_book_embedding", "embedding", metric="l2", include=("language",)),)


class Chapter(Base):
    """Vectors in a table of their own, several for a book."""

    __tablename__ = "chapter"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))
    book: Mapped[Book] = relationship(back_populates="chapters")
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_chapter_embedding", "embedding", metric="l2"),)


class Part(Base):
    """A composite key, searched exactly on SQLite."""

    __tablename__ = "part"
    maker: Mapped[str] = mapped_column(String(3), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))


class Animal(Base):
    """Single-table inheritance."""

    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_animal_embedding", "embedding", metric="l2"),)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Cat(Animal):
    __mapper_args__ = {"polymorphic_identity": "cat"}


class Vehicle(Base):
    """Joined-table inheritance, with the vector in the base."""

    __tablename__ = "vehicle"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_vehicle_embedding", "embedding", metric="l2"),)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle", "with_polymorphic": "*"}


class Boat(Vehicle):
    """Joined-table inheritance, with a vector of its own too."""

    __tablename__ = "boat"
    id: Mapped[int] = mapped_column(ForeignKey("vehicle.id"), primary_key=True)
    length: Mapped[int]
    sound: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_boat_sound", "sound", metric="l2"),)
    __mapper_args__ = {"polymorphic_identity": "boat"}


BOOKS = make_vectors(60, DIM)
CHAPTERS = make_vectors(180, DIM, seed=8)
ANIMALS = make_vectors(60, DIM, seed=9)
SOUNDS = make_vectors(60, DIM, seed=10)


def language_of(key: int) -> str:
    return ("de", "en", "fr")[key % 3]


def author_of(key: int) -> int:
    return key % 4 + 1


def book_of(chapter: int) -> int:
    return (chapter - 1) // 3 + 1


@pytest.fixture
def stocked(backend):
    engine = engine_that_indexes(backend)
    backend.create_all(engine, Base.metadata)

    def fill(session: Session) -> None:
        session.add_all(Author(id=key, name=f"author {key}") for key in range(1, 5))
        session.add_all(
            Book(
                id=key,
                title=f"title {key}",
                blurb=f"blurb {key}" if key % 2 else None,
                language=language_of(key),
                author_id=author_of(key),
                embedding=vector,
            )
            for key, vector in BOOKS.items()
        )
        session.flush()
        session.add_all(Chapter(id=key, book_id=book_of(key), embedding=v) for key, v in CHAPTERS.items())
        session.add_all((Cat if key % 4 == 0 else Animal)(id=key, embedding=vector) for key, vector in ANIMALS.items())
        session.add_all(Part(maker="ab"[key % 2], number=key // 2, embedding=v) for key, v in ANIMALS.items())
        session.add_all(
            Boat(id=key, embedding=vector, length=key, sound=SOUNDS[key])
            if key % 3 == 0
            else Vehicle(id=key, embedding=vector)
            for key, vector in ANIMALS.items()
        )

    backend.run(engine, fill)
    return engine


def found_by(rows) -> list[tuple[int, float]]:
    return [(row[0].id, row.distance) for row in rows]


def test_entities_and_columns_are_found_in_the_same_order(backend, stocked):
    def check(session: Session) -> None:
        expected = brute_force(BOOKS, QUERY, 7, "l2")
        rows = session.execute(nearest(select(Book), Book.embedding, QUERY, k=7)).all()
        assert_equal(found_by(rows), expected)
        assert {type(row[0]) for row in rows} == {Book}
        np.testing.assert_array_equal(rows[0][0].embedding, BOOKS[expected[0][0]])
        assert_equal(session.execute(nearest(select(Book.id, Book.title), Book.embedding, QUERY, k=7)), expected)
        assert [b.id for b in session.scalars(nearest(select(Book), Book.embedding, QUERY, k=7))] == [
            key for key, _ in expected
        ]
        both = session.execute(nearest(select(Book, Author.name).join(Book.author), Book.embedding, QUERY, k=7)).all()
        assert_equal(found_by(both), expected)
        assert all(row.name == f"author {author_of(row[0].id)}" for row in both)

    backend.run(stocked, check)


def test_filters_joins_and_aliases_narrow_the_search_wherever_they_are_added(backend, stocked):
    def check(session: Session) -> None:
        by_third = {"keep": lambda key: author_of(key) == 3}
        expected = brute_force(BOOKS, QUERY, 7, "l2", **by_third)
        name = Author.name == "author 3"
        before = nearest(select(Book).join(Book.author).where(name), Book.embedding, QUERY, k=7)
        after = nearest(select(Book), Book.embedding, QUERY, k=7).join(Book.author).where(name)
        filtered = nearest(select(Book).filter_by(author_id=3), Book.embedding, QUERY, k=7)
        for stmt in (before, after, filtered):
            assert_equal(found_by(session.execute(stmt)), expected)
        other = aliased(Book, name="other")
        aliases = nearest(select(other).where(other.author_id == 3), other.embedding, QUERY, k=7)
        assert_equal(found_by(session.execute(aliases)), expected)
        # Two roles of one table in one statement: the alias is searched, the plain one filters.
        same_author = select(other).join(Book, Book.author_id == other.author_id).where(Book.id == 2)
        assert_equal(found_by(session.execute(nearest(same_author, other.embedding, QUERY, k=7))), expected)
        outer = nearest(select(Book).outerjoin(Book.author).where(Author.id == 3), Book.embedding, QUERY, k=7)
        assert_equal(found_by(session.execute(outer)), expected)

    backend.run(stocked, check)


def test_correlated_subqueries_narrow_the_search(backend, stocked):
    def check(session: Session) -> None:
        with_far_chapter = exists().where(Chapter.book_id == Book.id, Chapter.id > 120)
        expected = brute_force(BOOKS, QUERY, 7, "l2", keep=lambda key: key > 40)
        for stmt in (
            nearest(select(Book).where(with_far_chapter), Book.embedding, QUERY, k=7),
            nearest(select(Book).where(Book.chapters.any(Chapter.id > 120)), Book.embedding, QUERY, k=7),
            nearest(select(Book), Book.embedding, QUERY, k=7).where(
                Book.id.in_(select(Chapter.book_id).where(Chapter.id > 120))
            ),
            nearest(select(Book), Book.embedding, QUERY, k=7).where(
                select(func.max(Chapter.id)).where(Chapter.book_id == Book.id).scalar_subquery() > 120
            ),
        ):
            assert_equal(found_by(session.execute(stmt)), expected)

    backend.run(stocked, check)


def test_loader_options_change_what_is_loaded_and_not_what_is_found(backend, stocked):
    expected = brute_force(BOOKS, QUERY, 7, "l2", keep=lambda key: language_of(key) == "en")
    stmt = nearest(select(Book).where(Book.language == "en"), Book.embedding, QUERY, k=7)

    def check(session: Session) -> None:
        for options in (
            (selectinload(Book.chapters), joinedload(Book.author)),
            (joinedload(Book.chapters),),
            (joinedload(Book.author).selectinload(Author.books),),
        ):
            session.expunge_all()
            rows = session.execute(stmt.options(*options)).unique().all()
            assert_equal(found_by(rows), expected)
            books = [row[0] for row in rows]
            assert all("author" not in inspect(b).unloaded or "chapters" not in inspect(b).unloaded for b in books)
        session.expunge_all()
        books = [row[0] for row in session.execute(stmt.options(joinedload(Book.chapters))).unique()]
        assert all([c.id for c in book.chapters] == [3 * book.id - 2, 3 * book.id - 1, 3 * book.id] for book in books)
        for option in (defer(Book.embedding), load_only(Book.title)):
            session.expunge_all()
            rows = session.execute(stmt.options(option)).all()
            assert_equal(found_by(rows), expected)
            assert all("embedding" in inspect(row[0]).unloaded for row in rows)

    backend.run(stocked, check)


def test_loader_criteria_narrow_the_search(backend, stocked):
    def check(session: Session) -> None:
        only_french = with_loader_criteria(Book, lambda cls: cls.language == "fr")
        expected = brute_force(BOOKS, QUERY, 7, "l2", keep=lambda key: language_of(key) == "fr")
        stmt = nearest(select(Book), Book.embedding, QUERY, k=7)
        assert_equal(found_by(session.execute(stmt.options(only_french))), expected)
        plain = with_loader_criteria(Book, Book.language == "fr")
        assert_equal(found_by(session.execute(stmt.options(plain))), expected)
        # The same statement without the option is not served from the other's cache entry.
        assert_equal(found_by(session.execute(stmt)), brute_force(BOOKS, QUERY, 7, "l2"))

    backend.run(stocked, check)


def test_inheritance_searches_the_rows_of_the_class(backend, stocked):
    def check(session: Session) -> None:
        cats = brute_force(ANIMALS, QUERY, 7, "l2", keep=lambda key: key % 4 == 0)
        rows = session.execute(nearest(select(Cat), Cat.embedding, QUERY, k=7)).all()
        assert_equal(found_by(rows), cats)
        assert {type(row[0]) for row in rows} == {Cat}
        animals = session.execute(nearest(select(Animal), Animal.embedding, QUERY, k=20)).all()
        assert_equal(found_by(animals), brute_force(ANIMALS, QUERY, 20, "l2"))
        assert {type(row[0]) for row in animals} == {Animal, Cat}

        boats = brute_force(ANIMALS, QUERY, 7, "l2", keep=lambda key: key % 3 == 0)
        assert_equal(found_by(session.execute(nearest(select(Boat), Boat.embedding, QUERY, k=7))), boats)
        vehicles = session.execute(nearest(select(Vehicle), Vehicle.embedding, QUERY, k=20)).all()
        assert_equal(found_by(vehicles), brute_force(ANIMALS, QUERY, 20, "l2"))
        assert {type(row[0]) for row in vehicles} == {Vehicle, Boat}
        long = brute_force(SOUNDS, QUERY, 5, "l2", keep=lambda key: key % 3 == 0 and key > 20)
        stmt = nearest(select(Boat).where(Boat.length > 20), Boat.sound, QUERY, k=5)
        assert_equal(found_by(session.execute(stmt)), long)

    backend.run(stocked, check)


def test_a_statement_of_nearest_is_a_subquery_like_any_other(backend, stocked):
    def check(session: Session) -> None:
        expected = brute_force(BOOKS, QUERY, 7, "l2")
        top = nearest(select(Book.id, Book.language), Book.embedding, QUERY, k=7).subquery("top")
        again = select(Book, top.c.distance).join(top, top.c.id == Book.id).order_by(top.c.distance, Book.id)
        assert_equal(found_by(session.execute(again)), expected)
        counted = select(top.c.language, func.count()).group_by(top.c.language)
        by_language: dict[str, int] = {}
        for key, _ in expected:
            by_language[language_of(key)] = by_language.get(language_of(key), 0) + 1
        assert dict(session.execute(counted).all()) == by_language
        entity = aliased(Book, nearest(select(Book), Book.embedding, QUERY, k=7).subquery())
        assert sorted(session.scalars(select(entity.id))) == sorted(key for key, _ in expected)
        in_cte = nearest(select(Book.id), Book.embedding, QUERY, k=7).cte("top_books")
        assert session.scalar(select(func.count()).select_from(in_cte)) == 7
        keys = nearest(select(Book.id), Book.embedding, QUERY, k=7).subquery()
        deleted_by = select(Chapter.id).where(Chapter.book_id.in_(select(keys.c.id)))
        assert len(session.scalars(deleted_by).all()) == 21
        english = nearest(select(Book.id).where(Book.language == "en"), Book.embedding, QUERY, k=3).subquery()
        french = nearest(select(Book.id).where(Book.language == "fr"), Book.embedding, QUERY, k=3).subquery()
        both = union_all(select(english.c.id, english.c.distance), select(french.c.id, french.c.distance))
        found = session.execute(both).all()
        assert_equal(found[:3], brute_force(BOOKS, QUERY, 3, "l2", keep=lambda key: language_of(key) == "en"))
        assert_equal(found[3:], brute_force(BOOKS, QUERY, 3, "l2", keep=lambda key: language_of(key) == "fr"))

    backend.run(stocked, check)


def test_rows_of_a_subquery_can_be_searched_by_their_entity(backend, stocked):
    def check(session: Session) -> None:
        french = aliased(Book, select(Book).where(Book.language == "fr").subquery())
        stmt = nearest(select(french), french.embedding, QUERY, k=7, metric="l2")
        expected = brute_force(BOOKS, QUERY, 7, "l2", keep=lambda key: language_of(key) == "fr")
        assert_equal(found_by(session.execute(stmt)), expected)

    backend.run(stocked, check)


def test_the_metric_is_that_of_the_index_whatever_the_entity_is_read_from(backend, stocked):
    """An alias of a class with joined tables, an entity over a subquery or a CTE."""
    boats = aliased(Boat)
    vectors = {key: vector for key, vector in ANIMALS.items() if key % 3 == 0}
    sources = (
        (boats.embedding, select(boats.id), vectors),
        (boats.sound, select(boats.id), {key: SOUNDS[key] for key in vectors}),
        (aliased(Boat, flat=True).embedding, None, vectors),
        (aliased(Book, select(Book).subquery()).embedding, None, BOOKS),
        (aliased(Book, select(Book).cte()).embedding, None, BOOKS),
    )

    def check(session: Session) -> None:
        for column, stmt, expected in sources:
            stmt = select(column.parent.entity.id) if stmt is None else stmt
            found = session.execute(nearest(stmt, column, QUERY, k=5)).all()
            assert_equal(found, brute_force(expected, QUERY, 5, "l2"))

    backend.run(stocked, check)


def test_a_search_in_a_table_of_vectors_returns_the_parents(backend, stocked):
    def check(session: Session) -> None:
        rows = session.execute(
            nearest(select(Book, Chapter.id.label("chapter")).join(Book.chapters), Chapter.embedding, QUERY, k=9)
        ).all()
        expected = brute_force(CHAPTERS, QUERY, 9, "l2")
        assert_equal([(row.chapter, row.distance) for row in rows], expected)
        assert [row[0].id for row in rows] == [book_of(key) for key, _ in expected]
        english = nearest(
            select(Book, Chapter.id.label("chapter")).join(Book.chapters).where(Book.language == "en"),
            Chapter.embedding,
            QUERY,
            k=9,
        )
        expected = brute_force(CHAPTERS, QUERY, 9, "l2", keep=lambda key: language_of(book_of(key)) == "en")
        assert_equal([(row.chapter, row.distance) for row in session.execute(english)], expected)

    backend.run(stocked, check)


def test_hits_carry_entity_similarity_and_source_text(backend, stocked):
    expected = brute_force(BOOKS, QUERY, 6, "l2")
    stmt = nearest(select(Book), Book.embedding, QUERY, k=6)

    def check(hits) -> None:
        assert_equal([(hit.entity.id, hit.distance) for hit in hits], expected)
        assert [hit.similarity for hit in hits] == pytest.approx([1 / (1 + d) for _, d in expected], rel=1e-5)
        for hit in hits:
            key = hit.entity.id
            assert hit.text == (f"title {key}\n\nblurb {key}" if key % 2 else f"title {key}")
            assert hit.row[0] is hit.entity

    if backend.is_async:
        from sqlalchemy.ext.asyncio import AsyncSession

        async def run() -> None:
            async with AsyncSession(stocked) as session:
                check(await asearch(session, stmt))

        backend.wait(run())

    def columns(session: Session) -> None:
        check(search(session, stmt))
        check(search(session, stmt.options(joinedload(Book.chapters))))
        keys = search(session, nearest(select(Book.id), Book.embedding, QUERY, k=6))
        assert [hit.entity for hit in keys] == [key for key, _ in expected]
        assert {hit.text for hit in keys} == {None}
        chapters = search(session, nearest(select(Chapter), Chapter.embedding, QUERY, k=3))
        assert {hit.text for hit in chapters} == {None}

    backend.run(stocked, columns)


def test_nearest_to_finds_what_is_like_a_row_but_for_itself(backend, stocked):
    def check(session: Session) -> None:
        others = {"keep": lambda key: key != 7}
        expected = brute_force(BOOKS, BOOKS[7], 6, "l2", **others)
        book = session.get(Book, 7)
        for given in (7, (7,), book):
            assert_equal(found_by(session.execute(nearest_to(Book.embedding, given, k=6))), expected)
        exact = nearest_to(Book.embedding, 7, k=6, exact=True, max_distance=99)
        assert_equal(found_by(session.execute(exact)), expected)
        narrowed = nearest_to(Book.embedding, 7, k=6).where(Book.language == "en")
        english = brute_force(BOOKS, BOOKS[7], 6, "l2", keep=lambda key: key != 7 and language_of(key) == "en")
        assert_equal(found_by(session.execute(narrowed)), english)
        # Row 1 has equals, which are at distance 0 and are found; itself is not.
        equals = [row[0].id for row in session.execute(nearest_to(Book.embedding, 1, k=6))]
        assert equals == [6, 16, 26, 36, 46, 56]
        other = aliased(Book)
        assert_equal(found_by(session.execute(nearest_to(other.embedding, 7, k=6))), expected)
        # A row without a vector, and no row at all.
        assert session.execute(nearest_to(Book.embedding, 4)).all() == []
        assert session.execute(nearest_to(Book.embedding, 4_444)).all() == []
        boats = brute_force(SOUNDS, SOUNDS[3], 5, "l2", keep=lambda key: key % 3 == 0 and key != 3)
        assert_equal(found_by(session.execute(nearest_to(Boat.sound, 3, k=5))), boats)

    backend.run(stocked, check)


def test_nearest_to_excludes_one_row_of_a_composite_key(backend, stocked):
    vectors = {("ab"[key % 2], key // 2): vector for key, vector in ANIMALS.items()}

    def check(session: Session) -> None:
        for given in (("b", 3), session.get_one(Part, ("b", 3))):
            rows = session.execute(nearest_to(Part.embedding, given, k=6, metric="l2")).all()
            expected = brute_force(vectors, vectors["b", 3], 6, "l2", keep=lambda key: key != ("b", 3))
            assert_equal([((row[0].maker, row[0].number), row.distance) for row in rows], expected)
        queries = [QUERY, vectors["a", 6]]
        rows = session.execute(nearest_each(select(Part), Part.embedding, queries, k=6, metric="l2")).all()
        for number, query in enumerate(queries):
            found = [((row[0].maker, row[0].number), row.distance) for row in rows if row.query == number]
            assert_equal(found, brute_force(vectors, query, 6, "l2"))

    backend.run(stocked, check)


def test_nearest_each_answers_every_query_as_nearest_would(backend, stocked):
    queries = np.random.default_rng(21).normal(size=(6, DIM)).astype(np.float32)
    # A vector that many rows have, and the zero vector.
    queries = np.concatenate([queries, [BOOKS[1]], np.zeros((1, DIM), np.float32)])

    def check(session: Session) -> None:
        for stmt, keep in (
            (select(Book), lambda key: True),
            (select(Book).where(Book.language == "en"), lambda key: language_of(key) == "en"),
            (select(Book).join(Book.author).where(Author.id != 2), lambda key: author_of(key) != 2),
        ):
            for exact in (False, True):
                rows = session.execute(nearest_each(stmt, Book.embedding, queries, k=5, exact=exact)).all()
                assert [row.query for row in rows] == [n for n in range(len(queries)) for _ in range(5)]
                for number, query in enumerate(queries):
                    found = found_by(row for row in rows if row.query == number)
                    assert_equal(found, brute_force(BOOKS, query, 5, "l2", keep=keep))
        one = session.execute(nearest_each(select(Book), Book.embedding, [QUERY], k=500)).all()
        assert_equal(found_by(one), brute_force(BOOKS, QUERY, 500, "l2"))
        near = nearest_each(select(Book), Book.embedding, queries[:2], k=5, max_distance=2.5)
        for number in (0, 1):
            found = found_by(row for row in session.execute(near) if row.query == number)
            assert_equal(found, brute_force(BOOKS, queries[number], 5, "l2", max_distance=2.5))
        list_of_lists = nearest_each(select(Book), Book.embedding, queries[:2].tolist(), k=1)
        assert len(session.execute(list_of_lists).all()) == 2

    backend.run(stocked, check)


def test_loader_criteria_and_inheritance_hold_in_every_search_form(backend, stocked):
    def check(session: Session) -> None:
        option = with_loader_criteria(Book, Book.language == "fr")
        keep = {"keep": lambda key: language_of(key) == "fr"}
        each = session.execute(nearest_each(select(Book), Book.embedding, [QUERY], k=5).options(option)).all()
        assert_equal(found_by(each), brute_force(BOOKS, QUERY, 5, "l2", **keep))
        like = nearest_to(Book.embedding, 2, k=5).options(option)
        expected = brute_force(BOOKS, BOOKS[2], 5, "l2", keep=lambda key: key != 2 and language_of(key) == "fr")
        assert_equal(found_by(session.execute(like)), expected)
        cats = session.execute(nearest_each(select(Cat), Cat.embedding, [QUERY], k=5)).all()
        assert_equal(found_by(cats), brute_force(ANIMALS, QUERY, 5, "l2", keep=lambda key: key % 4 == 0))
        like_a_cat = nearest_to(Cat.embedding, 8, k=5)
        expected = brute_force(ANIMALS, ANIMALS[8], 5, "l2", keep=lambda key: key % 4 == 0 and key != 8)
        assert_equal(found_by(session.execute(like_a_cat)), expected)

    backend.run(stocked, check)
