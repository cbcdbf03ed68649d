"""The fingerprint: its form, its column, and the models it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector.embedding import Fingerprint, Model, fingerprint
from sqla_vector.exc import InvalidOption
from tests.support.backends import AnyEngine, Backend
from tests.support.migrations import Project


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


LONGEST = Model("n" * 150, "v" * 64)


def test_a_fingerprint_names_model_version_and_text():
    # As `printf cats | b2sum -l 128` has it: rows keep their fingerprints through releases.
    assert fingerprint(Model("minilm", "1"), "cats") == "minilm@1:0fbf84ec8657722f30047ffe4e36a4dc"
    assert fingerprint(Model("minilm", "1"), None) is None


def test_fingerprints_are_stored_read_and_compared(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, Base.metadata)
    written = [fingerprint(Model("模型/ü", "1"), "cats"), fingerprint(LONGEST, "cats"), None]

    def body(session: Session) -> None:
        session.add_all(Note(id=n, embedding_fingerprint=f) for n, f in enumerate(written))
        session.flush()
        session.expire_all()
        assert list(session.scalars(select(Note.embedding_fingerprint).order_by(Note.id))) == written
        found = select(Note.id).where(Note.embedding_fingerprint.startswith("模型/ü@1:", autoescape=True))
        assert session.scalars(found).all() == [0]
        assert session.scalars(select(Note.id).where(Note.embedding_fingerprint == written[1])).all() == [1]
        assert session.scalars(select(Note.id).where(Note.embedding_fingerprint.is_(None))).all() == [2]

    backend.run(engine, body)


def test_the_column_survives_a_copy_of_its_table():
    copied = Base.metadata.tables["note"].to_metadata(MetaData()).c.embedding_fingerprint
    assert isinstance(copied.type, Fingerprint)
    assert copied.type.python_type is str
    assert repr(copied.type) == "Fingerprint()"


@pytest.mark.backends("psycopg", "pysqlite3", "asyncpg")
def test_a_migration_of_the_column_runs(backend: Backend, tmp_path: Path):
    project = Project(tmp_path, backend)
    written = project.revision(Base.metadata).read_text()
    assert "sqla_vector.embedding.Fingerprint()" in written
    project.upgrade()
    assert project.drift(Base.metadata) == []


NAMES = ["", " ", "a b", "a@b", "a\n", "a\0b", "a\ud800", "a\u2028b", "n" * 151, 5, None, b"minilm"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_that_fingerprints_cannot_hold_is_refused(name: Any):
    with pytest.raises(InvalidOption, match="a model's name has 1 to 150 printable characters"):
        Model(name, "1")


@pytest.mark.parametrize("version", [*(n for n in NAMES if n != "n" * 151), "1:2", "v" * 65, 1.0], ids=repr)
def test_a_version_that_fingerprints_cannot_hold_is_refused(version: Any):
    with pytest.raises(InvalidOption, match="a model's version has 1 to 64 printable characters"):
        Model("minilm", version)


@pytest.mark.parametrize("name", ["nomic-embed-text:latest", "BAAI/bge-m3", "模型", "a';DROP--", "%s"])
def test_names_as_model_hubs_have_them_are_accepted(name: str):
    assert str(Model(name, "2024-01-01")) == f"{name}@2024-01-01"


@given(st.text(), st.text(), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_fingerprint_tells_its_parts_apart(name: str, version: str, text: str):
    try:
        model = Model(name, version)
    except InvalidOption:
        return
    made = fingerprint(model, text)
    assert made is not None
    rest, _, hashed = made.rpartition(":")
    assert (tuple(rest.split("@")), len(hashed)) == ((name, version), 32)
    assert len(made) <= 255


def test_a_fingerprint_fits_a_table_without_the_orm():
    table = Table("plain", MetaData(), Column("id", Integer, primary_key=True), Column("f", Fingerprint()))
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table), {"id": 1, "f": "minilm@1:0"})
        assert connection.scalar(select(table.c.f)) == "minilm@1:0"
    engine.dispose()
