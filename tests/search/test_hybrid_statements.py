"""What hybrid() finds, and what may be done with its statement, on every driver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    exists,
    func,
    insert,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    with_loader_criteria,
)

from sqla_vector import Vector, asearch, match_text, nearest, search, text_index, vector_index
from sqla_vector.exc import InvalidStatement
from sqla_vector.fusion import rrf, weighted
from sqla_vector.search import HitPart, best_per_group, hybrid, rerank, score_of, text_part, vector_part
from tests.support.brute_force import engine_that_indexes

WORDS = {
    1: "cat",
    2: "dog",
    3: "cat dog",
    4: "tea",
    5: "cat cat",
    6: "dog",
    7: None,
    8: "cat",
    9: "tea cat",
    10: "bird",
}
ANGLES = {1: 0.1, 2: 0.2, 3: None, 4: 0.3, 5: 1.5, 6: 0.2, 7: 0.4, 8: None, 9: 1.2, 10: 0.9}
QUERY = [1.0, 0.0]
SYNCHRONOUS = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
"""For what is a matter of SQL and not of how values travel."""


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    words: Mapped[str | None] = mapped_column(String(80))
    lang: Mapped[str]
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(2))
    tags: Mapped[list[Tag]] = relationship(order_by="Tag.id")
    __table_args__ = (
        vector_index("ix_note_embedding", "embedding", metric="cosine", include=["lang"]),
        text_index("ix_note_words", "words"),
    )


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey(Note.id))
    name: Mapped[str]


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}


class Report(Document):
    __tablename__ = "report"
    id: Mapped[int] = mapped_column(ForeignKey(Document.id), primary_key=True)
    words: Mapped[str | None] = mapped_column(String(80))
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(2))
    __table_args__ = (vector_index("ix_report", "embedding"), text_index("ix_report_words", "words"))
    __mapper_args__ = {"polymorphic_identity": "report"}


class Paper(Base):
    __tablename__ = "paper"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    words: Mapped[str] = mapped_column(String(80))
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(2))
    __table_args__ = (vector_index("ix_paper", "embedding"), text_index("ix_paper_words", "words"))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "paper"}


class Memo(Paper):
    __tablename__ = "memo"
    id: Mapped[int] = mapped_column(ForeignKey(Paper.id), primary_key=True)
    signed: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "memo"}


def vector(angle: float | None) -> Any:
    return None if angle is None else [np.cos(angle), np.sin(angle)]


def fill(session: Session) -> None:
    for key, words in WORDS.items():
        tags = [Tag(name=name) for name in ("a", "b")[: key % 3]]
        embedding = vector(ANGLES[key])
        session.add(Note(id=key, words=words, lang="en" if key % 2 else "de", embedding=embedding, tags=tags))
        session.add(Report(id=key, words=words, embedding=embedding))
    session.flush()


@pytest.fixture
def engine(backend: Any) -> Any:
    engine = engine_that_indexes(backend)
    backend.create_all(engine, Base.metadata)
    backend.run(engine, fill)
    return engine


def both(stmt: Any = None, **options: Any) -> Any:
    return hybrid(
        select(Note) if stmt is None else stmt,
        options.pop("column", Note.embedding),
        vector=QUERY,
        text=options.pop("text", "cat"),
        **options,
    )


NEAR = [1, 2, 6, 4, 7, 10, 9, 5]
"""By vector; 3 and 8 have none."""


def test_a_row_that_one_part_alone_finds_is_found(backend, engine):
    def check(session: Session) -> None:
        rows = session.execute(both(k=20)).all()
        assert {row[0].id for row in rows} == {*NEAR, 1, 3, 5, 8, 9}
        by_key = {row[0].id: row for row in rows}
        assert by_key[2][2:] == (2, pytest.approx(np.cos(0.2)), None, None)
        assert by_key[8].vector_rank is by_key[8].vector_score is None
        assert by_key[8].text_rank is not None
        texts = session.execute(match_text(select(Note.id), Note, "cat", k=20)).all()
        assert {key: row.text_score for key, row in by_key.items() if row.text_rank} == pytest.approx(dict(texts))
        assert [key for key, _ in texts] == [
            row[0].id for row in sorted((row for row in rows if row.text_rank), key=lambda row: row.text_rank)
        ]
        for row in rows:
            expected = sum(1 / (60 + rank) for rank in (row.vector_rank, row.text_rank) if rank is not None)
            assert row.score == pytest.approx(expected, rel=1e-12)

    backend.run(engine, check)


def test_there_are_k_rows_if_the_parts_have_them_together(backend, engine):
    def check(session: Session) -> None:
        for k in range(1, 12):
            found = session.scalars(both(text="dog or bird", k=k, max_distance=0.03, candidates=k)).all()
            # By vector 1, 2 and 6; by text 2, 3, 6 and 10.
            assert len(found) == min(k, 5)
        assert session.scalars(both(text="nothing", max_distance=-1)).all() == []

    backend.run(engine, check)


def test_alpha_decides_between_text_and_vector(backend, engine):
    def check(session: Session) -> None:
        texts = session.scalars(match_text(select(Note.id), Note, "cat", k=20)).all()
        for normalize in ("minmax", "max", "none"):
            only = session.execute(both(k=20, fusion=weighted(0, normalize))).all()
            assert [row[0].id for row in only] == texts
            assert [row.text_rank for row in only] == [1, 2, 3, 4, 5]
            assert {row.vector_rank for row in only} == {row.vector_score for row in only} == {None}
            only = session.execute(both(k=20, fusion=weighted(1, normalize))).all()
            assert [row[0].id for row in only] == NEAR
            assert {row.text_rank for row in only} == {row.text_score for row in only} == {None}
        assert [note.id for note in session.scalars(both(k=3, fusion=weighted(1)).offset(2))] == NEAR[2:5]

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_part_alone_is_that_search(backend, engine):
    def check(session: Session) -> None:
        assert [n.id for n in session.scalars(hybrid(select(Note), Note.embedding, vector=QUERY, k=4))] == NEAR[:4]
        texts = session.scalars(match_text(select(Note.id), Note, "cat", k=3)).all()
        for stmt in (
            hybrid(select(Note), text="cat", k=3),
            hybrid(select(Note), Note.embedding, text="cat", k=3),
            hybrid(select(Note.id), parts=[text_part(Note, "cat")], k=3),
            hybrid(select(Note.id, Note.lang), text="cat", k=3),
            hybrid(select(Note.__table__), text="cat", k=3),
            hybrid(select(Note.__table__.c.id), Note.__table__.c.embedding, text="cat", k=3),
        ):
            rows = session.execute(stmt).all()
            assert [getattr(row[0], "id", row[0]) for row in rows] == texts

    backend.run(engine, check)


def test_the_where_of_the_statement_is_that_of_every_part(backend, engine):
    def check(session: Session) -> None:
        texts = session.scalars(match_text(select(Note.id).where(Note.lang == "en"), Note, "cat", k=2)).all()
        for stmt in (
            both(select(Note).where(Note.lang == "en"), k=20, candidates=20),
            both(k=20).where(Note.lang == "en"),
            both(k=20)
            .where(exists().where(Tag.note_id == Note.id).correlate(Note) | (Note.lang == "en"))
            .where(Note.lang == "en"),
        ):
            rows = session.execute(stmt).all()
            assert {row[0].id for row in rows} == {1, 3, 5, 7, 9}
            near = [row[0].id for row in sorted((r for r in rows if r.vector_rank), key=lambda row: row.vector_rank)]
            assert near == [1, 7, 9, 5]
            assert max(row.vector_rank or 0 for row in rows) == 4
            found = [row[0].id for row in sorted((r for r in rows if r.text_rank), key=lambda row: row.text_rank)]
            assert found[:2] == texts

    backend.run(engine, check)


@SYNCHRONOUS
def test_joins_before_and_after_take_part(backend, engine):
    def check(session: Session) -> None:
        for stmt in (
            both(select(Note).join(Note.tags).where(Tag.name == "b"), k=20),
            both(k=20).join(Note.tags).where(Tag.name == "b"),
            both(select(Note).where(Note.id == Tag.note_id, Tag.name == "b"), k=20),
        ):
            rows = session.execute(stmt).all()
            assert {row[0].id for row in rows} == {2, 5, 8}
            assert {row[0].id: row.vector_rank for row in rows} == {2: 1, 5: 2, 8: None}
        # A row that the join repeats counts once in the ranks, and is there as often as the join has it.
        rows = session.execute(both(select(Note, Tag.name).join(Note.tags), k=30)).all()
        assert sorted((row[0].id, row.name) for row in rows) == sorted(
            (key, name) for key in WORDS for name in ("a", "b")[: key % 3]
        )
        ranks = {row[0].id: row.vector_rank for row in rows if row.vector_rank}
        assert ranks == {key: rank for rank, key in enumerate([k for k in NEAR if k % 3], start=1)}
        assert len(session.execute(both(select(Note, Tag.name).join(Note.tags), k=3)).all()) == 3

    backend.run(engine, check)


def test_pages_joined_together_are_one_long_result(backend, engine):
    def check(session: Session) -> None:
        everything = session.scalars(both(select(Note.id), k=10, candidates=10)).all()
        assert len(everything) == 10
        pages = [
            session.scalars(both(select(Note.id), k=3, candidates=10).offset(start)).all() for start in (0, 3, 6, 9)
        ]
        assert [key for page in pages for key in page] == everything
        assert session.scalars(both(select(Note.id), k=3, candidates=10).offset(100)).all() == []

    backend.run(engine, check)


@SYNCHRONOUS
def test_criteria_that_nobody_wrote_take_part(backend, engine):
    def check(session: Session) -> None:
        written = session.execute(both(select(Note.id).where(Note.lang == "de"), k=3)).all()
        stmt = both(k=3).options(with_loader_criteria(Note, Note.lang == "de"))
        assert [(row[0].id, *row[1:]) for row in session.execute(stmt)] == [tuple(row) for row in written]
        # The left side of a join is found without being named.
        rows = session.execute(both(k=20).join(Tag).where(Tag.name == "b")).all()
        assert {row[0].id for row in rows} == {2, 5, 8}
        rows = session.execute(both(k=20).outerjoin(Tag).where(Tag.id.is_(None))).all()
        assert {row[0].id: row.vector_rank for row in rows} == {6: 1, 3: None, 9: 2}

    backend.run(engine, check)


@SYNCHRONOUS
def test_options_load_what_belongs_to_the_rows(backend, engine):
    def check(session: Session) -> None:
        plain = [note.id for note in session.scalars(both(k=6))]
        for option in (selectinload(Note.tags), joinedload(Note.tags)):
            session.expunge_all()
            found = session.scalars(both(k=6).options(option)).unique().all()
            assert [note.id for note in found] == plain
            session.expunge_all()
            assert [[tag.name for tag in note.tags] for note in _loaded(session, option)] == [
                ["a", "b"][: key % 3] for key in plain
            ]

    def _loaded(session: Session, option: Any) -> Any:
        return session.scalars(both(k=6).options(option)).unique().all()

    backend.run(engine, check)


@SYNCHRONOUS
def test_an_alias_is_searched_as_itself(backend, engine):
    def check(session: Session) -> None:
        plain = session.scalars(both(select(Note.id), k=6)).all()
        other = aliased(Note)
        assert session.scalars(both(select(other.id), column=other.embedding, k=6)).all() == plain
        table = Note.__table__.alias("n")
        assert session.scalars(both(select(table.c.id), column=table.c.embedding, k=6)).all() == plain
        # Both of a pair, one of them searched.
        pairs = both(select(Note.id, other.id.label("next")).join(other, other.id == Note.id + 1), k=20)
        assert [row[0] for row in session.execute(pairs)] == [
            row[0] for row in session.execute(both(select(Note.id).where(Note.id < 10), k=20))
        ]

    backend.run(engine, check)


@SYNCHRONOUS
def test_the_statement_is_a_subquery_a_cte_and_a_part_of_a_union(backend, engine):
    def check(session: Session) -> None:
        plain = session.scalars(both(select(Note.id), k=4)).all()
        rows = both(select(Note.id), k=4).subquery()
        assert session.scalars(select(rows.c.id).order_by(rows.c.score.desc(), rows.c.id)).all() == plain
        assert session.scalar(select(func.count()).select_from(rows)) == 4
        cte = both(select(Note.id), k=4).cte()
        joined = select(Note.id, cte.c.score).join(cte, cte.c.id == Note.id).order_by(cte.c.score.desc(), Note.id)
        assert session.scalars(joined).all() == plain
        entity = aliased(Note, both(k=4).subquery())
        assert sorted(note.id for note in session.scalars(select(entity))) == sorted(plain)
        # One statement, extended in two ways.
        stmt = both(select(Note.id), k=2)
        english, german = (stmt.where(Note.lang == lang).subquery() for lang in ("en", "de"))
        union = union_all(select(english.c.id), select(german.c.id))
        expected = [
            *session.scalars(both(select(Note.id).where(Note.lang == "en"), k=2)),
            *session.scalars(both(select(Note.id).where(Note.lang == "de"), k=2)),
        ]
        assert sorted(session.scalars(union)) == sorted(expected)
        assert sorted(session.scalars(select(Note.id).where(Note.id.in_(select(rows.c.id))))) == sorted(plain)

    backend.run(engine, check)


@SYNCHRONOUS
@SYNCHRONOUS
def test_ranked_rows_are_not_correlated_without_a_word(backend, engine):
    """They are derived tables, which would look at the rows of all outer ones at once, and lose some of the k."""
    own = select(Note.id).where(Note.id == Tag.note_id)
    near = nearest(own, Note.embedding, QUERY, k=1)
    matching = match_text(own, Note, "cat", k=1)
    ranked = (
        hybrid(own, Note.embedding, vector=QUERY, k=1, candidates=1),
        hybrid(own.where(Note.lang == "en"), Note.embedding, vector=QUERY, text="cat", k=1),
        best_per_group(near, Note.lang),
        rerank(matching, Note.id, k=1),
    )

    def check(session: Session) -> None:
        for stmt in ranked:
            for outer in (
                select(Tag.id, stmt.with_only_columns(Note.id).correlate(Tag).scalar_subquery()),
                select(Tag.id).where(stmt.correlate(Tag).exists()),
            ):
                with pytest.raises(InvalidStatement, match="names tag, which is of the statement around this one"):
                    session.execute(outer)
        for stmt in (near, matching):
            session.execute(select(Tag.id, stmt.with_only_columns(Note.id).correlate(Tag).scalar_subquery())).all()

    backend.run(engine, check)


def test_groups_are_of_all_candidates(backend, engine):
    def check(session: Session) -> None:
        stmt = both(select(Note.lang), k=5).with_only_columns(Note.lang, maintain_column_froms=True)
        assert sorted(session.scalars(stmt.order_by(None).distinct())) == ["de", "en"]

    backend.run(engine, check)


@pytest.mark.backends(family="postgresql")
def test_rows_can_be_locked(backend, engine):
    def check(session: Session) -> None:
        plain = [note.id for note in session.scalars(both(k=4))]
        assert [note.id for note in session.scalars(both(k=4).with_for_update())] == plain
        assert [note.id for note in session.scalars(both(k=4).with_for_update(of=Note))] == plain

    backend.run(engine, check)


def test_statements_that_differ_in_values_alone_do_not_mix(backend, engine):
    def check(session: Session) -> None:
        for _ in range(2):
            for text, angle, alpha, lang in (("cat", 0.0, 0.5, "en"), ("dog", 1.5, 0.9, "de"), ("tea", 0.9, 0.1, "en")):
                stmt = hybrid(
                    select(Note.id).where(Note.lang == lang),
                    Note.embedding,
                    vector=vector(angle),
                    text=text,
                    fusion=weighted(alpha),
                    k=10,
                )
                rows = session.execute(stmt).all()
                near = session.scalars(nearest(select(Note.id).where(Note.lang == lang), Note.embedding, vector(angle)))
                by_rank = sorted((row for row in rows if row.vector_rank), key=lambda row: row.vector_rank)
                assert [row[0] for row in by_rank] == near.all()
                words = session.scalars(match_text(select(Note.id).where(Note.lang == lang), Note, text)).all()
                by_rank = sorted((row for row in rows if row.text_rank), key=lambda row: row.text_rank)
                assert [row[0] for row in by_rank] == words
                best = max(rows, key=lambda row: row.vector_score or -9)
                assert best.score >= alpha - 1e-9

    backend.run(engine, check)


def test_a_statement_is_built_once_and_run_with_many_queries(backend, engine):
    def check(session: Session) -> None:
        stmt = hybrid(select(Note.id), Note.embedding, vector=bindparam("v"), text=bindparam("q"), k=4)
        for text, angle in (("cat", 0.0), ("dog", 1.5), ("cat", 0.0)):
            made = hybrid(select(Note.id), Note.embedding, vector=vector(angle), text=text, k=4)
            found = session.execute(stmt, {"v": vector(angle), "q": text}).all()
            assert found == session.execute(made).all()
            assert session.execute(stmt.params(v=vector(angle), q=text)).all() == found

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_class_with_inherited_columns_is_searched(backend, engine):
    def check(session: Session) -> None:
        stmt = hybrid(select(Report), Report.embedding, vector=QUERY, text="cat", k=6)
        expected = session.scalars(both(select(Note.id), k=6)).all()
        assert [report.id for report in session.scalars(stmt)] == expected
        assert [report.id for report in session.scalars(stmt.where(Document.kind == "report"))] == expected

    backend.run(engine, check)


def test_a_class_with_joined_tables_is_searched_by_what_its_parent_has(backend, engine):
    flat = aliased(Memo, flat=True)

    def check(session: Session) -> None:
        session.add_all([Paper(id=20, words="cat", embedding=vector(0.0)), Memo(id=21, words="cat", embedding=QUERY)])
        session.add_all([Memo(id=22, words="tea", embedding=vector(0.5)), Memo(id=23, words="cat tea", signed="x")])
        session.flush()
        for entity in (Memo, flat):
            for text in ("cat", "tea"):
                found = hybrid(select(entity), entity.embedding, vector=QUERY, text=text, k=5)
                assert {row[0].id for row in session.execute(found)} == {21, 22, 23}
                found = hybrid(select(entity), entity.embedding, vector=QUERY, text=text, k=5, fusion=weighted(0.0))
                assert len(session.execute(found).all()) == 2
                alone = hybrid(select(entity).where(entity.signed == "x"), text=text, k=5)
                assert [row[0].id for row in session.execute(alone)] == [23]
                text_alone = match_text(select(entity), entity, text, k=5)
                assert len(session.execute(text_alone).all()) == 2
                assert len(session.execute(rerank(text_alone, entity.id, k=2)).all()) == 2
        assert {row[0].id for row in session.execute(hybrid(select(Paper), text="cat", k=5))} == {20, 21, 23}

    backend.run(engine, check)


def test_hits_say_which_part_has_found_them(backend, engine):
    def check(session: Session) -> None:
        hits = search(session, both(k=20))
        by_key = {hit.entity.id: hit for hit in hits}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert by_key[8].parts["vector"] is by_key[8].distance is by_key[8].similarity is None
        assert by_key[2].parts["text"] is None
        assert by_key[2].parts["vector"] == HitPart(2, pytest.approx(np.cos(0.2)))
        assert by_key[2].similarity == pytest.approx(np.cos(0.2))
        assert by_key[2].distance == pytest.approx(1 - np.cos(0.2), abs=1e-6)
        assert by_key[3].text == "cat dog"
        assert by_key[7].text == ""
        assert list(by_key[1].parts) == ["vector", "text"]
        stmt = both(k=5)
        again = search(session, rerank(stmt, -score_of(stmt), k=3))
        worst = sorted(hit.score for hit in search(session, stmt))[:3]
        assert [-hit.score for hit in again] == worst
        assert [hit.score for hit in again] == [-by_key[hit.entity.id].score for hit in again]
        words = search(session, match_text(select(Note), Note, "cat", k=3))
        assert [(hit.distance, hit.score, hit.text) for hit in words] == [
            (None, hit.row.score, hit.entity.words) for hit in words
        ]
        with pytest.raises(InvalidStatement, match="vectors=True"):
            search(session, match_text(select(Note), Note, "cat"), vectors=True)
        assert search(session, hybrid(select(Note.id), text="cat", k=1))[0].text is None

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_search_by_text_is_a_first_stage_too(backend, engine):
    def check(session: Session) -> None:
        stmt = match_text(select(Note), Note, "cat", k=4)
        candidates = [note.id for note in session.scalars(stmt)]
        found = rerank(stmt, Note.id, k=3)
        assert [note.id for note in session.scalars(found)] == sorted(candidates, reverse=True)[:3]
        assert [note.id for note in session.scalars(found.offset(3))] == sorted(candidates, reverse=True)[3:]
        by_score = rerank(stmt, -score_of(stmt), k=4)
        assert [hit.score for hit in search(session, by_score)] == sorted(
            (-score for _, score in session.execute(stmt)), reverse=True
        )
        english = [note.id for note in session.scalars(stmt.where(Note.lang == "en"))]
        later = found.where(Note.lang == "en")
        assert [note.id for note in session.scalars(later)] == sorted(english, reverse=True)[:3]

    backend.run(engine, check)


def test_vectors_of_several_columns_and_weights(backend, engine):
    def check(session: Session) -> None:
        parts = [
            vector_part(Note.embedding, QUERY, weight=3, name="near"),
            vector_part(Note.embedding, [0.0, 1.0], name="other", max_distance=0.5),
            text_part(Note, "cat", weight=2),
            text_part(Note, "dog", name="dogs"),
        ]
        rows = session.execute(hybrid(select(Note.id), parts=parts, k=10, fusion=rrf(5))).all()
        assert rows[0]._fields == (
            "id",
            "score",
            *(f"{name}_{what}" for name in ("near", "other", "text", "dogs") for what in ("rank", "score")),
        )
        for row in rows:
            ranks = (row.near_rank, row.other_rank, row.text_rank, row.dogs_rank)
            gains = [w / (5 + rank) for w, rank in zip((3, 1, 2, 1), ranks, strict=True) if rank is not None]
            assert row.score == pytest.approx(sum(gains), rel=1e-12)
        assert [(-row.score, row.id) for row in rows] == sorted((-row.score, row.id) for row in rows)

    backend.run(engine, check)


@SYNCHRONOUS
def test_rows_with_the_same_ranks_in_other_parts_are_in_the_order_of_their_keys(backend, engine):
    """Sums of the same numbers in another order may differ in the last bit; here they must not."""

    def check(session: Session) -> None:
        # Three rows of which each is first, second and third in one of three lists, on a circle's thirds.
        thirds = [vector(2 * np.pi * number / 3) for number in range(3)]
        for number, key in enumerate((101, 102, 103)):
            session.add(Note(id=key, words="third", lang="x", embedding=thirds[number]))
        session.flush()
        queries = [vector(2 * np.pi * number / 3 + 0.3) for number in range(3)]
        parts = [vector_part(Note.embedding, query, name=f"p{number}") for number, query in enumerate(queries)]
        for k in (1, 3, 7, 10, 60, 61):
            rows = session.execute(hybrid(select(Note.id).where(Note.lang == "x"), parts=parts, fusion=rrf(k))).all()
            assert [sorted((row.p0_rank, row.p1_rank, row.p2_rank)) for row in rows] == [[1, 2, 3]] * 3
            assert len({row.score for row in rows}) == 1
            assert [row.id for row in rows] == [101, 102, 103]

    backend.run(engine, check)


@SYNCHRONOUS
def test_keys_of_two_columns_and_of_text(backend):
    """A key of two columns has no vec0 table, and one of text an FTS5 table by rowid; it works all the same."""
    rows = {("t", 1): 0.1, ("t", 2): 0.2, ("s", 1): 0.3, ("s", 2): None}

    def check(connection: Connection) -> None:
        pairs = Table(
            "pair",
            MetaData(),
            Column("tenant", String(4), primary_key=True),
            Column("number", Integer, primary_key=True, autoincrement=False),
            Column("one", Vector(2)),
            Column("two", Vector(2)),
        )
        named = Table(
            "named",
            MetaData(),
            Column("name", String(8), primary_key=True),
            Column("words", String(40)),
            Column("one", Vector(2)),
            vector_index("ix_named_one", "one"),
            text_index("ix_named_words", "words"),
        )
        pairs.create(connection)
        named.create(connection)
        for (tenant, number), angle in rows.items():
            values = {"tenant": tenant, "number": number, "one": vector(angle), "two": vector(1 - (angle or 0))}
            connection.execute(insert(pairs).values(values))
            values = {"name": f"{tenant}'{number}", "words": "cat " * number, "one": vector(angle)}
            connection.execute(insert(named).values(values))
        parts = [vector_part(pairs.c.one, QUERY), vector_part(pairs.c.two, QUERY)]
        both = hybrid(select(pairs.c.tenant, pairs.c.number), parts=parts, k=10)
        found = {(row.tenant, row.number): (row.one_rank, row.two_rank) for row in connection.execute(both)}
        # Of the second: 0.9, 0.8, 0.7 and 1.0 from the query's direction.
        assert found == {("t", 1): (1, 3), ("t", 2): (2, 2), ("s", 1): (3, 1), ("s", 2): (None, 4)}
        other = connection.execute(both.where(pairs.c.tenant == "s")).all()
        assert [row[:2] for row in other] == [("s", 1), ("s", 2)]
        mixed = hybrid(select(named.c.name), named.c.one, vector=QUERY, text="cat", k=10)
        found = {row.name: row.vector_rank for row in connection.execute(mixed)}
        assert found == {"t'1": 1, "t'2": 2, "s'1": 3, "s'2": None}
        assert all(row.text_rank for row in connection.execute(mixed))

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.backends(is_async=True)
def test_an_asynchronous_session_finds_the_same(backend, engine):
    async def program() -> list[int]:
        async with AsyncSession(engine) as session:
            hits = await asearch(session, both(k=5))
            rows = (await session.scalars(both(k=5))).all()
            assert [hit.entity.id for hit in hits] == [note.id for note in rows]
            return [hit.entity.id for hit in hits]

    expected = backend.run(engine, lambda session: session.scalars(both(select(Note.id), k=5)).all())
    assert backend.wait(program()) == expected
