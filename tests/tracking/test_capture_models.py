"""From models to triggers: inheritance, keys, paths and names, and what is refused."""

import datetime
import json
import subprocess
import sys
import uuid
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    Uuid,
    and_,
    create_mock_engine,
    insert,
    or_,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, foreign, mapped_column, relationship, remote

from sqla_vector import InvalidIdentifier, InvalidOption, Vector
from sqla_vector.dialects.capture import Capture, capture_name
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.exc import InvalidDeclaration
from sqla_vector.tracking import outbox_table, outbox_triggers
from tests.support.backends import AnyEngine, Backend
from tests.tracking.captured import Captured, library, notes

BACKENDS = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite")
POSTGRESQL = pytest.mark.backends("psycopg", "asyncpg")
SQLITE = pytest.mark.backends("pysqlite3", "aiosqlite")


def embedding(source: Any, **options: Any) -> Any:
    return embedding_column(Vector(2), source=source, embedder="e", **options)


def with_triggers(base: Any) -> Any:
    base.outbox = outbox_table(base.metadata)
    base.captures = outbox_triggers(base, base.outbox)
    return base


class Upper(TypeDecorator[str]):
    """Text that is stored in upper case."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.upper()


UUID = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
KEYS = [
    (Integer(), 7, "[7]"),
    (BigInteger(), -(2**62), "[-4611686018427387904]"),
    (String(40), "a", '["a"]'),
    (String(40), 'a"b\\c/d\ne\tf\x01g\x7fh', None),
    (String(40), "Grüße 漢字 🙂", None),
    (String(40), "", '[""]'),
    (String(40), "1", '["1"]'),
    (String(40), "[1]", '["[1]"]'),
    (Uuid(), UUID, f'["{UUID}"]'),
    (Uuid(as_uuid=False), str(UUID), f'["{UUID}"]'),
    (Uuid(native_uuid=False), UUID, f'["{UUID}"]'),
    (Date(), datetime.date(2024, 2, 3), '["2024-02-03"]'),
    (DateTime(), datetime.datetime(2024, 2, 3, 4, 5, 6), '["2024-02-03T04:05:06"]'),
    (DateTime(), datetime.datetime(2024, 2, 3, 4, 5, 6, 700), '["2024-02-03T04:05:06.000700"]'),
    (DateTime(), datetime.datetime(2024, 2, 3, 4, 5, 6, 500000), '["2024-02-03T04:05:06.500000"]'),
]


@BACKENDS
@pytest.mark.parametrize(("type_", "key", "written"), KEYS, ids=[f"{k[0]!r}-{n}" for n, k in enumerate(KEYS)])
def test_a_key_is_written_as_json_dumps_writes_it(backend: Backend, engine: AnyEngine, type_, key, written):
    made = Captured(backend, engine, notes(key=type_))
    expected = written or json.dumps([key], separators=(",", ":"), ensure_ascii=False)
    note = made.tables["note"]
    assert made.sql(insert(note).values(id=key, body="x")) == {("note", expected, "upsert")}


@BACKENDS
def test_a_key_of_a_decorated_type_is_what_is_stored(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, notes(key=Upper()))
    assert made.sql(insert(made.tables["note"]).values(id="abc", body="x")) == {("note", '["ABC"]', "upsert")}


@POSTGRESQL
def test_dates_that_are_none_in_python_fail_no_statement(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, notes(key=DateTime()))
    made.sql("INSERT INTO note (id, body) VALUES ('infinity', 'x'), ('0044-03-15 BC', 'y')")
    other = Captured(backend, engine, two_keys())
    found = other.sql("SET DateStyle = 'German, DMY'", "INSERT INTO pair VALUES ('2024-02-03', 'infinity', 'x')")
    assert found == {("pair", '["2024-02-03","infinity"]', "upsert")}


def two_keys() -> Any:
    class Base(DeclarativeBase):
        metadata = MetaData()

    class Pair(Base):
        __tablename__ = "pair"
        a: Mapped[datetime.date] = mapped_column(primary_key=True)
        b: Mapped[datetime.date] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding: Mapped[np.ndarray | None] = embedding("body")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata, "pair_outbox")  # type: ignore[attr-defined]
    outbox_triggers([Pair], Base.outbox)  # type: ignore[attr-defined]
    return Base


def employees() -> Any:
    """Joined inheritance: the vector in the child's table, of texts of both; and single-table inheritance."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Engineer(Person):
        __tablename__ = "engineer"
        id: Mapped[int] = mapped_column("engineer_id", ForeignKey("person.id"), primary_key=True)
        skill: Mapped[str]
        embedding: Mapped[np.ndarray | None] = embedding(("name", "skill"))
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_identity": "engineer"}

    class Report(Base):
        __tablename__ = "report"
        id: Mapped[int] = mapped_column(primary_key=True)
        engineer_id: Mapped[int] = mapped_column(ForeignKey("engineer.engineer_id"))
        engineer: Mapped[Engineer] = relationship()
        embedding: Mapped[np.ndarray | None] = embedding("engineer.name")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    return with_triggers(Base)


@BACKENDS
def test_with_joined_inheritance_a_change_of_the_parents_table_marks_the_row(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, employees())
    assert made.sql("INSERT INTO person (id, kind, name) VALUES (1, 'engineer', 'n'), (2, 'person', 'm')") == set()
    assert made.sql("INSERT INTO engineer (engineer_id, skill) VALUES (1, 's')") == {("engineer", "[1]", "upsert")}
    made.sql("INSERT INTO report (id, engineer_id) VALUES (5, 1)")
    engineer, report = ("engineer", "[1]", "upsert"), ("report", "[5]", "upsert")
    assert made.sql("UPDATE person SET name = 'x'") == {engineer, report}
    assert made.sql("UPDATE person SET name = 'y' WHERE id = 2") == set()
    assert made.sql("UPDATE engineer SET skill = 'x'") == {engineer}


def fruits() -> Any:
    class Base(DeclarativeBase):
        pass

    class Named:
        name: Mapped[str]
        embedding: Mapped[np.ndarray | None] = embedding("name")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    class Fruit(Named, Base):
        __tablename__ = "fruit"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "fruit"}

    class Apple(Fruit):
        color: Mapped[str | None]
        second: Mapped[np.ndarray | None] = embedding(("name", "color"))
        second_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_identity": "apple"}

    return with_triggers(Base)


@BACKENDS
def test_classes_of_one_table_share_its_triggers(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, fruits())
    row = {("fruit", "[1]", "upsert")}
    columns = "id, kind, name, embedding_fingerprint, second_fingerprint"
    assert made.sql(f"INSERT INTO fruit ({columns}) VALUES (1, 'apple', 'n', 'm@1:n', 'm@1:n')") == set()
    assert made.sql("UPDATE fruit SET color = 'red'") == row
    assert made.sql("UPDATE fruit SET kind = 'fruit'") == row
    assert made.sql("UPDATE fruit SET name = 'x', embedding_fingerprint = 'm@1:x'") == row
    assert made.sql("UPDATE fruit SET name='y', embedding_fingerprint='m@1:y', second_fingerprint='m@1:y'") == set()
    assert made.sql("UPDATE fruit SET color = 'blue', second_fingerprint = 'm@1:z'") == set()


def tree() -> Any:
    class Base(DeclarativeBase):
        pass

    class Node(Base):
        __tablename__ = "node"
        tenant: Mapped[str] = mapped_column(primary_key=True)
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None]
        name: Mapped[str] = mapped_column("label")
        parent: Mapped["Node | None"] = relationship(
            remote_side="[Node.tenant, Node.id]",
            back_populates="children",
            foreign_keys="[Node.parent_id, Node.tenant]",
        )
        children: Mapped[list["Node"]] = relationship(
            back_populates="parent", foreign_keys="[Node.parent_id, Node.tenant]", overlaps="parent"
        )
        embedding: Mapped[np.ndarray | None] = embedding(
            lambda node: node.name, depends_on=("name", "parent.parent.name", "children.name")
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __table_args__ = (ForeignKeyConstraint(["tenant", "parent_id"], ["node.tenant", "node.id"]),)

    return with_triggers(Base)


@BACKENDS
def test_a_row_may_depend_on_others_of_its_own_table(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, tree())
    made.sql(
        "INSERT INTO node (tenant, id, parent_id, label) VALUES ('a', 1, NULL, 'x'), ('a', 2, 1, 'x'), "
        "('a', 3, 2, 'x'), ('a', 4, 3, 'x'), ('b', 1, NULL, 'x'), ('b', 2, 1, 'x')"
    )

    def nodes(*keys: str) -> set[tuple[str, str, str]]:
        return {("node", f'["{key[0]}",{key[1]}]', "upsert") for key in keys}

    # The row itself, its grandchildren, its parent.
    assert made.sql("UPDATE node SET label = 'y' WHERE tenant = 'a' AND id = 2") == nodes("a2", "a4", "a1")
    assert made.sql("UPDATE node SET label = 'y' WHERE tenant = 'b' AND id = 1") == nodes("b1")
    # Of a row that moves: the children too, who have another grandparent.
    found = made.sql("UPDATE node SET parent_id = 1 WHERE tenant = 'a' AND id = 3")
    assert found == nodes("a3", "a4", "a2", "a1")
    assert nodes("a3") <= made.sql("DELETE FROM node WHERE tenant = 'a' AND id = 4")


def conditional() -> Any:
    class Base(DeclarativeBase):
        pass

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        post_id: Mapped[int]
        body: Mapped[str]
        position: Mapped[int] = mapped_column(server_default="0")
        hidden: Mapped[bool] = mapped_column(nullable=True)

    class Post(Base):
        __tablename__ = "post"
        id: Mapped[int] = mapped_column(primary_key=True)
        comments: Mapped[list[Comment]] = relationship(
            primaryjoin=lambda: and_(Post.id == foreign(Comment.post_id), Comment.hidden.is_(None)),
            order_by=lambda: Comment.position,
        )
        embedding: Mapped[np.ndarray | None] = embedding(lambda p: "", depends_on=("comments.body",))
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    return with_triggers(Base)


@BACKENDS
def test_a_condition_of_a_relationship_is_watched_and_its_order(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, conditional())
    post = {("post", "[1]", "upsert")}
    assert made.sql("INSERT INTO post (id, embedding_fingerprint) VALUES (1, 'm@1:x')") == set()
    assert made.sql("INSERT INTO comment (id, post_id, body) VALUES (1, 1, 'x')") == post
    comment = made.tables["comment"]
    assert made.sql(update(comment).values(hidden=True)) == post
    assert made.sql("UPDATE comment SET position = 4") == post
    assert made.sql("UPDATE comment SET id = 4") == set()


def computed() -> Any:
    class Base(DeclarativeBase):
        pass

    class Word(Base):
        __tablename__ = "word"
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[str]
        b: Mapped[str] = mapped_column(Computed("a || a", persisted=True))
        embedding: Mapped[np.ndarray | None] = embedding("b")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    return with_triggers(Base)


@BACKENDS
def test_a_column_that_the_database_computes_is_a_source_as_any(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, computed())
    assert made.sql("INSERT INTO word (id, a) VALUES (1, 'x')") == {("word", "[1]", "upsert")}
    assert made.sql("UPDATE word SET a = 'y'") == {("word", "[1]", "upsert")}


def test_a_definition_is_the_same_in_every_process():
    program = "from tests.tracking.captured import library; print([c.hash for c in library(schema='s').captures])"
    done = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert done[0] == done[1] == f"{[c.hash for c in library(schema='s').captures]}\n"


def test_a_definition_comes_back_from_its_json():
    for capture in library(schema="odd name").captures:
        assert Capture.from_mapping(json.loads(capture.to_json())) == capture
        assert "/" not in capture.to_json().replace("\\/", "")


def test_names_of_triggers_fit_and_differ():
    long = [capture_name("x" * 62 + letter, "embedding") for letter in "ab"]
    assert len({*long, capture_name("ä" * 31, "embedding")}) == 3
    assert all(len(name.encode()) <= 48 for name in long)


def test_other_databases_are_left_alone():
    base, written = notes(), []
    mock = create_mock_engine("mysql+pymysql://", lambda sql, *arguments, **kw: written.append(sql))
    # The tables themselves are of types that MySQL lacks.
    base.metadata.dispatch.after_create(base.metadata, mock, tables=list(base.metadata.tables.values()))
    base.metadata.dispatch.before_drop(base.metadata, mock, tables=list(base.metadata.tables.values()))
    assert written == []


@pytest.mark.parametrize("dialect", ["postgresql+psycopg", "sqlite"])
def test_a_mock_engine_writes_the_triggers_down(dialect):
    base, written = notes(), []

    def dump(sql: Any, *arguments: Any, **kw: Any) -> None:
        written.append(str(sql.compile(dialect=mock.dialect)))

    mock = create_mock_engine(f"{dialect}://", dump)
    base.metadata.create_all(mock, checkfirst=False)
    assert any(statement.startswith("CREATE TRIGGER") for statement in written)


@pytest.mark.parametrize("type_", [LargeBinary(), Boolean()], ids=repr)
def test_a_key_that_cannot_be_written_is_refused(type_):
    with pytest.raises(InvalidDeclaration, match="keys of type"):
        notes(key=type_)


def related(condition: Any) -> Any:
    class Base(DeclarativeBase):
        pass

    class Other(Base):
        __tablename__ = "other"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[int]
        b: Mapped[int]
        other: Mapped[Other] = relationship(primaryjoin=lambda: condition(Item, Other), viewonly=True)
        embedding: Mapped[np.ndarray | None] = embedding("other.name")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    return with_triggers(Base)


@pytest.mark.parametrize(
    "condition",
    [
        lambda i, o: or_(foreign(i.a) == remote(o.id), foreign(i.b) == remote(o.id)),
        lambda i, o: foreign(i.a) + 1 == remote(o.id),
    ],
    ids=["or", "arithmetic"],
)
def test_a_relationship_that_is_more_than_equal_columns_is_refused(condition):
    with pytest.raises(InvalidDeclaration, match="cannot be watched by triggers"):
        related(condition)


@pytest.mark.parametrize("name", ['a"b', "a;DROP TABLE x", "a'b", "a%s", "a:p", "a.b", "a\nb"])
def test_a_name_that_cannot_stand_in_a_trigger_is_refused(name):
    with pytest.raises(InvalidIdentifier, match="is no name"):
        library(names={"article": name})


def test_what_is_no_outbox_is_refused():
    class Base(DeclarativeBase):
        pass

    with pytest.raises(InvalidOption, match="outbox_table"):
        outbox_triggers(Base, Table("t", MetaData(), Column("id", Integer)))


@SQLITE
def test_an_outbox_in_another_database_is_refused(backend: Backend, engine: AnyEngine):
    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding: Mapped[np.ndarray | None] = embedding("body")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    outbox_triggers(Base, outbox_table(Base.metadata, schema="elsewhere"))

    def attach(connection: Any) -> None:
        connection.exec_driver_sql("ATTACH ':memory:' AS elsewhere")
        Base.metadata.create_all(connection)

    with pytest.raises(InvalidOption, match="its own database only"):
        backend.run_connection(engine, attach)


@SQLITE
def test_tables_of_an_attached_database_have_triggers(backend: Backend, engine: AnyEngine):
    base = library(schema="elsewhere")

    def run(connection: Any) -> Any:
        connection.exec_driver_sql("ATTACH ':memory:' AS elsewhere")
        base.metadata.create_all(connection)
        connection.exec_driver_sql("INSERT INTO elsewhere.author (id, name) VALUES (1, 'x')")
        connection.exec_driver_sql("INSERT INTO elsewhere.article (id, author_id, headline) VALUES (1, 1, 'x')")
        connection.exec_driver_sql("DELETE FROM elsewhere.vector_outbox")
        connection.exec_driver_sql("UPDATE elsewhere.author SET name = 'y'")
        return connection.exec_driver_sql("SELECT entity, row_key FROM elsewhere.vector_outbox").all()

    assert [tuple(row) for row in backend.run_connection(engine, run)] == [("elsewhere.article", "[1]")]
