"""The vec0 table stays equal to its table, whatever is written and however it is undone."""

from __future__ import annotations

from contextlib import suppress
from datetime import time
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import (
    Column,
    Computed,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Time,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import IndexNotUsable, Vector, match_text, nearest, text_index, vector_index
from tests.support.brute_force import assert_equal, distance, make_vectors
from tests.support.brute_force import nearest as brute_force

VEC0 = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
SYNCHRONOUS = pytest.mark.backends("sqlite_stdlib", "pysqlite3")
DIM = 4

CONFIGURATIONS = {
    "full cosine": {"metric": "cosine", "include": ("language", "year"), "partition_by": "tenant"},
    "full l2": {"metric": "l2"},
    "int8 l2": {"metric": "l2", "precision": "int8", "value_range": 4, "include": ("year",)},
    "int8 cosine": {"metric": "cosine", "precision": "int8", "partition_by": ("tenant",)},
    "binary cosine": {"metric": "cosine", "precision": "binary", "include": ("language",)},
}


def make_table(key: Any, **options: Any) -> Table:
    return Table(
        "item",
        MetaData(),
        Column("id", key, primary_key=True),
        Column("slug", String(5), unique=True),
        Column("language", String(5)),
        Column("year", Integer),
        Column("tenant", String(5), nullable=False),
        Column("embedding", Vector(DIM)),
        vector_index("ix_item", "embedding", **options),
    )


def quantized(vector: np.ndarray, options: dict[str, Any]) -> bytes:
    """Return what vec0 keeps of a vector."""
    match options.get("precision", "full"):
        case "binary":
            return np.packbits(vector > 0, bitorder="little").tobytes()
        case "int8":
            largest = np.abs(vector).max() if options["metric"] == "cosine" else np.float32(options["value_range"])
            return np.clip(np.rint(vector * (127 / float(largest))), -127, 127).astype(np.int8).tobytes()
    return vector.astype("<f4").tobytes()


def indexed_columns(options: dict[str, Any]) -> list[str]:
    partition = options.get("partition_by", ())
    return [*([partition] if isinstance(partition, str) else partition), *options.get("include", ())]


def assert_in_step(connection: Connection, table: Table, options: dict[str, Any]) -> None:
    """Compare the vec0 table with the table: keys, quantized vectors, metadata."""
    columns = indexed_columns(options)
    stand_ins = {"language": "\x01null", "year": -9223372036854775807}
    expected = {}
    for row in connection.execute(select(table)):
        if row.embedding is None or (options["metric"] == "cosine" and not row.embedding.any()):
            continue
        values = [getattr(row, name) for name in columns]
        values = [stand_ins[name] if value is None else value for name, value in zip(columns, values, strict=True)]
        expected[row.id] = (quantized(row.embedding, options), *values)
    is_text = isinstance(table.c.id.type, String)
    kept = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(ix_item)")][1 : 2 + len(columns)]
    found = {
        row[0]: tuple(row[1:]) for row in connection.exec_driver_sql(f"SELECT rowid, {', '.join(kept)} FROM ix_item")
    }
    if is_text:
        keys = dict(connection.exec_driver_sql("SELECT number, key FROM ix_item_keys").all())
        found = {keys[number]: values for number, values in found.items()}
        assert set(keys.values()) <= set(connection.execute(select(table.c.id)).scalars())
    assert found == expected


KEYS = st.integers(-2, 5)
WORDS = st.sampled_from([None, "a", "b", "c'", ""])
YEARS = st.sampled_from([None, 0, 1, 2000, -1])
ELEMENTS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.25, -2.0])
VECTORS = st.none() | st.just([0.0] * DIM) | st.lists(ELEMENTS, min_size=DIM, max_size=DIM)
ROWS = st.fixed_dictionaries(
    {
        "slug": WORDS,
        "language": WORDS,
        "year": YEARS,
        "tenant": st.sampled_from(["t1", "t2"]),
        "embedding": VECTORS,
    }
)
CONFLICTS = st.sampled_from([None, "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT"])


class Writer(RuleBasedStateMachine):
    """Writes of every kind; after each of them the vec0 table is compared with the table."""

    engine: Engine
    table: Table
    options: dict[str, Any]
    recursive_triggers = False
    savepoints = Bundle("savepoints")

    def __init__(self) -> None:
        super().__init__()
        self.connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.connection.exec_driver_sql(f"PRAGMA recursive_triggers = {'ON' if self.recursive_triggers else 'OFF'}")
        self.table.create(self.connection)
        self.in_transaction = False
        self.depth = 0

    def teardown(self) -> None:
        if self.in_transaction:
            self.connection.exec_driver_sql("COMMIT")
        vectors = dict(self.connection.execute(select(self.table.c.id, self.table.c.embedding)).all())
        query = np.array([0.3, -0.7, 1.1, 0.2], np.float32)
        stmt = nearest(select(self.table.c.id), self.table.c.embedding, query, k=5, oversample=100)
        found = self.connection.execute(stmt).all()
        assert_equal(found, brute_force(vectors, query, 5, self.options["metric"]))
        self.table.drop(self.connection)
        assert (
            self.connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name <> 'sqlite_sequence'").all()
            == []
        )
        self.connection.close()

    def key(self, number: int) -> Any:
        return number if isinstance(self.table.c.id.type, Integer) else f"k'{number}"

    def write(self, statement: Any, *parameters: Any) -> None:
        """Execute; a refused statement must leave both tables as they were."""
        # OR ROLLBACK is not among the rules, so a transaction is still open after the error.
        with suppress(IntegrityError):
            self.connection.execute(statement, *parameters)

    @rule(number=KEYS, row=ROWS, conflict=CONFLICTS)
    def insert_one(self, number: int, row: dict[str, Any], conflict: str | None) -> None:
        statement = insert(self.table).values(id=self.key(number), **row)
        self.write(statement if conflict is None else statement.prefix_with(conflict))

    @rule(row=ROWS, conflict=CONFLICTS)
    def insert_with_a_new_key(self, row: dict[str, Any], conflict: str | None) -> None:
        if isinstance(self.table.c.id.type, Integer):
            statement = insert(self.table).values(**row)
            self.write(statement if conflict is None else statement.prefix_with(conflict))

    @rule(rows=st.lists(st.tuples(KEYS, ROWS), min_size=1, max_size=4), conflict=CONFLICTS)
    def insert_many(self, rows: list[tuple[int, dict[str, Any]]], conflict: str | None) -> None:
        statement = insert(self.table)
        statement = statement if conflict is None else statement.prefix_with(conflict)
        self.write(statement, [{"id": self.key(number), **row} for number, row in rows])

    @rule(rows=st.lists(st.tuples(KEYS, ROWS), min_size=1, max_size=3), conflict=CONFLICTS)
    def insert_in_one_statement(self, rows: list[tuple[int, dict[str, Any]]], conflict: str | None) -> None:
        statement = insert(self.table).values([{"id": self.key(number), **row} for number, row in rows])
        self.write(statement if conflict is None else statement.prefix_with(conflict))

    @rule(number=KEYS, row=ROWS, on=st.sampled_from(["id", "slug"]))
    def upsert(self, number: int, row: dict[str, Any], on: str) -> None:
        statement = sqlite_insert(self.table).values(id=self.key(number), **row)
        changed = {name: statement.excluded[name] for name in ("embedding", "language", "year", "tenant")}
        self.write(statement.on_conflict_do_update(index_elements=[on], set_=changed))

    @rule(number=KEYS, row=ROWS)
    def upsert_without_effect(self, number: int, row: dict[str, Any]) -> None:
        self.write(sqlite_insert(self.table).values(id=self.key(number), **row).on_conflict_do_nothing())

    @rule(number=KEYS, row=ROWS, names=st.sets(st.sampled_from(["embedding", "language", "year", "tenant", "slug"])))
    def update_some_columns(self, number: int, row: dict[str, Any], names: set[str]) -> None:
        if names:
            changed = {name: row[name] for name in sorted(names)}
            self.write(update(self.table).where(self.table.c.id == self.key(number)).values(changed))

    @rule(number=KEYS, row=ROWS, conflict=CONFLICTS)
    def update_all_columns(self, number: int, row: dict[str, Any], conflict: str | None) -> None:
        statement = update(self.table).where(self.table.c.id == self.key(number)).values(**row)
        self.write(statement if conflict is None else statement.prefix_with(conflict, dialect="sqlite"))

    @rule(number=KEYS, to=KEYS, conflict=CONFLICTS)
    def update_the_key(self, number: int, to: int, conflict: str | None) -> None:
        statement = update(self.table).where(self.table.c.id == self.key(number)).values(id=self.key(to))
        self.write(statement if conflict is None else statement.prefix_with(conflict, dialect="sqlite"))

    @rule(year=YEARS, row=ROWS)
    def update_many(self, year: int | None, row: dict[str, Any]) -> None:
        matching = self.table.c.year.is_not_distinct_from(year)
        self.write(update(self.table).where(matching).values(embedding=row["embedding"], language=row["language"]))

    @rule(number=KEYS)
    def delete_one(self, number: int) -> None:
        self.write(delete(self.table).where(self.table.c.id == self.key(number)))

    @rule(tenant=st.sampled_from(["t1", "t2"]))
    def delete_many(self, tenant: str) -> None:
        self.write(delete(self.table).where(self.table.c.tenant == tenant))

    @rule()
    def delete_all(self) -> None:
        # Without WHERE SQLite would truncate, if there were no triggers.
        self.write(delete(self.table))

    @precondition(lambda self: not self.in_transaction)
    @rule()
    def begin(self) -> None:
        self.connection.exec_driver_sql("BEGIN")
        self.in_transaction = True

    @precondition(lambda self: self.in_transaction)
    @rule()
    def savepoint(self) -> None:
        self.depth += 1
        self.connection.exec_driver_sql(f"SAVEPOINT s{self.depth}")

    @precondition(lambda self: self.depth > 0)
    @rule(undo=st.booleans())
    def end_savepoint(self, undo: bool) -> None:
        if undo:
            self.connection.exec_driver_sql(f"ROLLBACK TO s{self.depth}")
        self.connection.exec_driver_sql(f"RELEASE s{self.depth}")
        self.depth -= 1

    @precondition(lambda self: self.in_transaction)
    @rule(undo=st.booleans())
    def end(self, undo: bool) -> None:
        self.connection.exec_driver_sql("ROLLBACK" if undo else "COMMIT")
        self.in_transaction = False
        self.depth = 0

    @invariant()
    def in_step(self) -> None:
        assert_in_step(self.connection, self.table, self.options)


@SYNCHRONOUS
@pytest.mark.parametrize("key", [Integer, String(9)], ids=["int", "text"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("recursive", [False, True], ids=["", "recursive_triggers"])
def test_the_index_follows_every_write(backend, key, configuration, recursive):
    options = CONFIGURATIONS[configuration]

    class Configured(Writer):
        engine = backend.make_engine(url="sqlite://")
        table = make_table(key, **options)
        recursive_triggers = recursive

    Configured.options = options
    examples = 8 if recursive else 20
    run_state_machine_as_test(
        Configured, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("note.id", ondelete="CASCADE"))
    language: Mapped[str | None]
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_note", "embedding", metric="l2", include=("language",)),)


@VEC0
def test_the_index_follows_orm_and_bulk_writes(backend, engine):
    vectors = make_vectors(40, DIM)
    query = np.ones(DIM, np.float32)
    backend.create_all(engine, Base.metadata)

    def check(session: Session, language: str | None = None) -> None:
        rows = session.execute(select(Note.id, Note.embedding, Note.language)).all()
        known = {row.id: row.embedding for row in rows if language is None or row.language == language}
        stmt = select(Note.id) if language is None else select(Note.id).where(Note.language == language)
        compiled = nearest(stmt, Note.embedding, query, k=100)
        assert "ix_note" in str(compiled.compile(session.connection()))
        assert_equal(session.execute(compiled), brute_force(known, query, 100, "l2"))

    def write(session: Session) -> None:
        session.add_all(Note(id=key, embedding=vector, language="en") for key, vector in vectors.items())
        session.flush()
        check(session)
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        notes[0].embedding, notes[1].embedding, notes[2].language = None, np.ones(DIM), "fr"
        notes[3].id = 999
        session.delete(notes[4])
        session.flush()
        check(session)
        check(session, "fr")
        session.execute(update(Note).where(Note.id > 20).values(language="de", embedding=[9, 9, 9, 9]))
        check(session, "de")
        session.execute(update(Note), [{"id": key, "embedding": [key] * DIM, "language": None} for key in (7, 8, 9)])
        check(session)
        session.execute(insert(Note), [{"id": 1_000 + key, "embedding": v} for key, v in vectors.items()])
        check(session)
        session.bulk_update_mappings(Note, [{"id": 1_001, "embedding": None}, {"id": 1_002, "language": "fr"}])
        check(session, "fr")
        session.merge(Note(id=1_003, embedding=np.zeros(DIM), language="fr"))
        session.flush()
        check(session, "fr")
        session.execute(delete(Note).where(Note.id < 10))
        check(session)
        nested = session.begin_nested()
        session.execute(delete(Note))
        check(session)
        nested.rollback()
        check(session)
        Table("note", MetaData(), autoload_with=session.connection())
        statement = text("UPDATE note SET language = :language WHERE id = 1006").bindparams(bindparam("language"))
        session.execute(statement, {"language": "raw"})
        check(session, "raw")

    backend.run(engine, write)
    backend.run(engine, check)

    class Undone(Exception):
        pass

    def undo(session: Session) -> None:
        session.execute(delete(Note))
        session.add(Note(id=5_000, embedding=query))
        session.flush()
        check(session)
        raise Undone

    with pytest.raises(Undone):
        backend.run(engine, undo)
    backend.run(engine, check)


@VEC0
def test_the_index_follows_cascades_of_foreign_keys(backend, engine):
    backend.create_all(engine, Base.metadata)

    def write(session: Session) -> None:
        session.add(Note(id=1, embedding=[1, 0, 0, 0]))
        session.flush()
        session.add_all(Note(id=key, parent_id=1, embedding=[key, 0, 0, 0]) for key in (2, 3))
        session.add(Note(id=4, embedding=[4, 0, 0, 0]))

    def cascade(session: Session) -> None:
        session.execute(text("PRAGMA foreign_keys = ON"))
        session.execute(delete(Note).where(Note.id == 1))
        assert session.scalars(select(Note.id)).all() == [4]
        assert session.connection().exec_driver_sql("SELECT rowid FROM ix_note").scalars().all() == [4]
        found = session.execute(nearest(select(Note.id), Note.embedding, [0, 0, 0, 0])).all()
        assert [(row.id, row.distance) for row in found] == [(4, distance("l2", [4, 0, 0, 0], [0] * DIM))]

    backend.run(engine, write)
    backend.run(engine, cascade)


@VEC0
def test_filters_inside_the_index_tell_null_from_its_stand_in(backend, engine):
    """vec0 keeps no NULL: what stands for it must not be found by value, nor NULL be lost."""
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("word", String),
        Column("number", Integer),
        Column("tenant", String),
        Column("embedding", Vector(DIM)),
        vector_index("ix_t", "embedding", metric="l2", include=("word", "number"), partition_by="tenant"),
    )
    rows = [
        {"id": 1, "word": None, "number": None, "tenant": None, "embedding": [1] * DIM},
        {"id": 2, "word": "", "number": 0, "tenant": "", "embedding": [2] * DIM},
        {"id": 3, "word": "x" * 200, "number": 2**62, "tenant": "é'", "embedding": [3] * DIM},
        {"id": 4, "word": "x" * 200 + "y", "number": -(2**62), "tenant": "é'", "embedding": [4] * DIM},
    ]

    def found(connection: Connection, *criteria: Any) -> list[int]:
        stmt = nearest(select(table.c.id).where(*criteria), table.c.embedding, [0] * DIM, k=10)
        return list(connection.execute(stmt).scalars())

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), rows)
        c = table.c
        for criterion, expected in (
            (c.word.is_(None), [1]),
            (c.word == "", [2]),
            (c.word == "\x01null", []),
            (c.word != "", [3, 4]),
            (c.word == "x" * 200, [3]),
            (c.word > "x" * 200, [4]),
            (c.number == -9223372036854775807, []),
            (c.number < 0, [4]),
            (c.number == 2**62, [3]),
            (c.number == "0", [2]),
            (c.number >= 0, [2, 3]),
            (c.tenant == "é'", [3, 4]),
            (c.tenant.is_(None), [1]),
            (c.tenant == "", [2]),
            (c.tenant != "", [3, 4]),
            (c.tenant > "", [3, 4]),
        ):
            assert found(connection, criterion) == expected, str(criterion)
        assert found(connection, c.tenant == "é'", c.word == "x" * 200) == [3]

    backend.run_connection(engine, check)


@VEC0
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_texts_of_any_length_are_compared_by_their_order(backend, engine, method):
    """sqlite-vec 0.1.9 fails at the order of a text of 12 bytes, the most that it keeps beside the text's length."""
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("word", String, nullable=False),
        Column("at", Time, nullable=False),
        Column("tenant", String, nullable=False),
        Column("embedding", Vector(DIM)),
        vector_index("ix_t", "embedding", metric="l2", method=method, include=("word", "at"), partition_by="tenant"),
    )
    words = {length: "abcdefghijklmnopqrst"[:length] for length in range(1, 20)}

    def found(connection: Connection, *criteria: Any) -> list[int]:
        stmt = nearest(select(table.c.id).where(*criteria), table.c.embedding, [0] * DIM, k=30)
        return list(connection.execute(stmt).scalars())

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = [{"id": n, "word": w, "tenant": w, "at": time(n), "embedding": [n] * DIM} for n, w in words.items()]
        connection.execute(insert(table), rows)
        # As other programs write it, in 12 bytes.
        connection.exec_driver_sql("UPDATE t SET at = '12:00:00.000' WHERE id = 12")
        c = table.c
        for number, word in words.items():
            below, all_ = list(range(1, number)), list(words)
            for column, value in ((c.word, word), (c.tenant, word)):
                assert found(connection, column < value) == below
                assert found(connection, column <= value) == [*below, number]
                assert found(connection, column > value) == all_[number:]
                assert found(connection, column >= value) == all_[number - 1 :]
                assert found(connection, column == value) == [number]
                assert found(connection, column != value) == [n for n in all_ if n != number]
        assert found(connection, c.at > time(12, 30)) == list(range(13, 20))

    backend.run_connection(engine, check)


def make_replaced(*more: Any, key: Any = Integer, mail: Any = String) -> Table:
    return Table(
        "user",
        MetaData(),
        Column("id", key, primary_key=True),
        Column("mail", mail),
        Column("body", Text),
        Column("embedding", Vector(2)),
        *more,
    )


INDEXES = {
    "vector": lambda: vector_index("ix_user", "embedding", metric="l2"),
    "lists": lambda: vector_index("ix_user", "embedding", metric="l2", method="ivfflat"),
    "text": lambda: text_index("ix_user", "body"),
}
EACH_INDEX = pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)


@VEC0
@EACH_INDEX
@pytest.mark.parametrize("is_known", [True, False], ids=["declared", "in the database"])
def test_a_unique_index_on_an_expression_is_refused(backend, engine, index, is_known):
    table = make_replaced(index())
    there = table if is_known else make_replaced()
    Index("uq_mail", func.lower(there.c.mail), unique=True)

    def check(connection: Connection) -> None:
        there.create(connection)
        (wanted,) = (index for index in table.indexes if index.name == "ix_user")
        wanted.create(connection)

    with pytest.raises(IndexNotUsable, match="user: the unique index uq_mail is on an expression"):
        backend.run_connection(engine, check)


@VEC0
@EACH_INDEX
def test_a_unique_index_of_another_database_alone_is_none(backend, engine, index):
    table = make_replaced(index())
    Index("uq_mail", func.lower(table.c.mail), unique=True).ddl_if(dialect="postgresql")
    backend.run_connection(engine, table.create)


@VEC0
@EACH_INDEX
@pytest.mark.parametrize("is_known", [True, False], ids=["declared", "in the database"])
def test_a_text_key_with_a_collation_is_refused(backend, engine, index, is_known):
    collated = String(9, collation="NOCASE")

    def check(connection: Connection) -> None:
        make_replaced(key=collated).create(connection)
        table = make_replaced(index(), key=collated if is_known else String(9))
        (wanted,) = table.indexes
        wanted.create(connection)

    with pytest.raises(IndexNotUsable, match=r"ix_user: .* and that of user has the collation NOCASE"):
        backend.run_connection(engine, check)


@VEC0
@EACH_INDEX
@pytest.mark.parametrize("way", ["collation", "computed", "descending"])
def test_what_is_replaced_by_equality_of_another_kind_is_forgotten(backend, engine, index, way):
    more: list[Any] = [index()]
    if way == "computed":
        more.append(Column("folded", String, Computed("lower(mail)"), unique=True))
    table = make_replaced(*more, mail=String(collation="NOCASE" if way == "collation" else None))
    if way != "computed":
        Index("uq_mail", table.c.mail.desc(), unique=True)

    def check(connection: Connection) -> None:
        table.create(connection)
        mails = ["a@x"] * 3 if way == "descending" else ["a@x", "A@x", "a@X"]
        for number, mail in enumerate(mails, start=1):
            row = {"id": number, "mail": mail, "body": "fox", "embedding": [0, number]}
            connection.execute(insert(table).prefix_with("OR REPLACE"), row)
        connection.execute(insert(table), {"id": 9, "mail": "b", "body": "fox", "embedding": [5, 5]})
        if index is INDEXES["text"]:
            connection.exec_driver_sql("INSERT INTO ix_user (ix_user, rank) VALUES ('integrity-check', 1)")
            assert sorted(connection.scalars(match_text(select(table.c.id), table, "fox", k=2))) == [3, 9]
        else:
            found = nearest(select(table.c.id), table.c.embedding, [0, 0], k=2)
            assert connection.scalars(found).all() == [3, 9]
            assert connection.exec_driver_sql("SELECT count(*) FROM ix_user").scalar() == 2

    backend.run_connection(engine, check)
