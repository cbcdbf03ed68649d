"""Text indexes as part of a schema: made, filled, dropped, copied, reflected, renamed; and what serves a search."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Enum,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    Unicode,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex

from sqla_vector import (
    IndexNotUsable,
    InvalidIdentifier,
    InvalidOption,
    PluginMissing,
    Vector,
    match_text,
    nearest,
    text_index,
    vector_index,
)
from sqla_vector.dialects import settings_of
from sqla_vector.text_index import text_index_key, text_indexes
from sqla_vector.types import support_of

SQLITE = pytest.mark.backends(family="sqlite")
POSTGRESQL = pytest.mark.backends(family="postgresql")


class Folded(TypeDecorator[str]):
    impl = String
    cache_ok = True


def make(metadata: MetaData | None = None, *more: Any, key: Any = Integer, schema: str | None = None) -> Table:
    return Table(
        "article",
        MetaData() if metadata is None else metadata,
        Column("id", key, primary_key=True),
        Column("title", String(200)),
        Column("body", Text),
        text_index("ix_article_text", "title", "body", weights=(1, 0.5)),
        *more,
        schema=schema,
    )


ROWS = [{"id": 1, "title": "red", "body": "fox"}, {"id": 2, "title": None, "body": "a red hen"}]


def found(connection: Connection, table: Table, query: str = "red") -> list[Any]:
    return sorted(connection.scalars(match_text(select(table.c.id), table, query)))


def objects(connection: Connection) -> list[str]:
    """Return the names of all tables, views, indexes and triggers of an SQLite database."""
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return sorted(row[0] for row in rows)


def test_an_index_is_made_filled_and_dropped(backend, engine):
    metadata = MetaData()
    table = make(metadata)

    def check(connection: Connection) -> None:
        (index,) = table.indexes
        metadata.create_all(connection)
        connection.execute(insert(table), ROWS)
        assert found(connection, table) == [1, 2]
        assert inspect(connection).has_index("article", "ix_article_text")
        index.drop(connection)
        assert not inspect(connection).has_index("article", "ix_article_text")
        connection.execute(update(table).where(table.c.id == 2).values(body="a blue hen"))
        # Filled with the rows that are there.
        index.create(connection)
        assert found(connection, table) == [1]
        index.create(connection, checkfirst=True)
        metadata.create_all(connection)
        assert found(connection, table, "hen") == [2]
        metadata.drop_all(connection)
        assert not inspect(connection).has_table("article")
        assert inspect(connection).get_table_names() == []

    backend.run_connection(engine, check)


@SQLITE
def test_nothing_is_left_of_an_index_that_is_dropped(backend, engine):
    metadata = MetaData()
    make(metadata, key=String(9))

    def check(connection: Connection) -> None:
        metadata.create_all(connection)
        assert "ix_article_text_keys" in objects(connection)
        metadata.drop_all(connection)
        assert objects(connection) == []
        # A table that declares nothing takes its index along as well.
        metadata.create_all(connection)
        Table("article", MetaData(), Column("id", Integer)).drop(connection)
        assert objects(connection) == []
        metadata.create_all(connection)
        Index("ix_article_text", Table("article", MetaData(), Column("id", Integer)).c.id).drop(connection)
        assert objects(connection) == ["article"]

    backend.run_connection(engine, check)


@SQLITE
def test_an_index_that_cannot_be_filled_leaves_nothing(backend, engine):
    table = make()
    (index,) = table.indexes

    def check(connection: Connection) -> None:
        table.indexes.clear()
        table.create(connection)
        connection.exec_driver_sql("CREATE TABLE ix_article_text_config (mine)")
        before = objects(connection)
        with pytest.raises(Exception, match="ix_article_text_config"):
            index.create(connection)
        assert objects(connection) == before

    backend.run_connection(engine, check)


def test_a_rollback_takes_the_index_back(backend, engine):
    metadata = MetaData()
    table = make(metadata)

    class Undone(Exception):
        pass

    def undo(connection: Connection) -> None:
        metadata.create_all(connection)
        connection.execute(insert(table), ROWS)
        assert found(connection, table) == [1, 2]
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, undo)
    assert backend.run_connection(engine, lambda c: inspect(c).get_table_names()) == []
    backend.create_all(engine, metadata)
    backend.run_connection(engine, lambda c: c.execute(insert(table), ROWS))
    assert backend.run_connection(engine, lambda c: found(c, table)) == [1, 2]


def test_a_copied_table_has_a_copied_index(backend, engine):
    original = make()
    (index,) = original.indexes
    copied = original.to_metadata(MetaData())
    assert type(index) is Index
    ((copy, key),) = text_indexes(copied)
    assert copy is not index
    assert key.spec == text_index_key(index).spec
    assert all(column.table is copied for column in key.columns)

    def check(connection: Connection) -> None:
        copied.create(connection)
        connection.execute(insert(copied), ROWS)
        assert found(connection, copied) == [1, 2]
        copied.drop(connection)

    backend.run_connection(engine, check)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib", "sqlite_numpy", "aiosqlite")
def test_reflection_shows_an_index_and_none_of_its_tables(backend, engine):
    metadata = MetaData()
    make(metadata, Column("slug", String(9), unique=True))
    make_key = Table("keyed", metadata, Column("id", String(9), primary_key=True), Column("line", Text))
    make_key.append_constraint(CheckConstraint("id <> ''"))
    text_index("ix_keyed", "line", language="english")._set_parent_with_dispatch(make_key)

    def check(connection: Connection) -> None:
        metadata.create_all(connection)
        connection.exec_driver_sql("CREATE VIEW mine AS SELECT 1 AS one")
        inspector = inspect(connection)
        assert sorted(inspector.get_table_names()) == ["article", "keyed"]
        assert inspector.get_view_names() == ["mine"]
        reflected = MetaData()
        reflected.reflect(connection)
        assert sorted(reflected.tables) == ["article", "keyed"]
        ((_, key),) = text_indexes(reflected.tables["article"])
        assert (key.spec.columns, key.spec.labels, key.spec.language) == (("title", "body"), ("A", "B"), "simple")
        ((_, key),) = text_indexes(reflected.tables["keyed"])
        assert (key.spec.columns, key.spec.labels, key.spec.language) == (("line",), ("A",), "english")
        # What was reflected can be made again.
        metadata.drop_all(connection)
        reflected.create_all(connection)
        connection.execute(insert(reflected.tables["article"]), ROWS)
        assert found(connection, reflected.tables["article"]) == [1, 2]

    backend.run_connection(engine, check)


@SQLITE
def test_tables_and_columns_may_be_renamed(backend, engine):
    for key, first in ((Integer, 1), (String(9), "1")):
        table = make(key=key)
        rows = [{**row, "id": (key is Integer and row["id"]) or str(row["id"])} for row in ROWS]

        def check(connection: Connection, table: Table = table, rows: Any = rows, first: Any = first) -> None:
            table.create(connection)
            connection.execute(insert(table), rows)
            for rename in (
                'ALTER TABLE article RENAME TO "my news"',
                'ALTER TABLE "my news" RENAME COLUMN title TO "head line"',
                'ALTER TABLE "my news" RENAME COLUMN id TO number',
            ):
                connection.exec_driver_sql(rename)
            renamed = Table("my news", MetaData(), autoload_with=connection)
            ((_, declared),) = text_indexes(renamed)
            assert declared.spec.columns == ("head line", "body")
            connection.execute(update(renamed).where(renamed.c.number == first).values({"head line": "zebra"}))
            stmt = match_text(select(renamed.c.number), renamed, "zebra", snippet=True)
            assert connection.execute(stmt).one()[0] == first
            assert connection.execute(stmt).one().snippet == "<mark>zebra</mark>"
            connection.exec_driver_sql(
                "INSERT INTO ix_article_text (ix_article_text, rank) VALUES ('integrity-check', 1)"
            )
            renamed.drop(connection)
            assert objects(connection) == []

        backend.run_connection(engine, check)


@SQLITE
def test_vacuum_does_not_renumber_rows_with_text_keys(backend, engine):
    table = make(key=String(9))
    keys = [f"k{number}" for number in range(50)]

    def fill(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": key, "title": key, "body": "red"} for key in keys])
        connection.execute(table.delete().where(table.c.id.in_(keys[:40])))

    def check(connection: Connection) -> None:
        assert found(connection, table) == sorted(keys[40:])
        assert [found(connection, table, key) for key in keys[40:]] == [[key] for key in keys[40:]]
        connection.execute(table.delete().where(table.c.id == "k41"))
        assert found(connection, table, "k41") == []
        connection.exec_driver_sql("INSERT INTO ix_article_text (ix_article_text, rank) VALUES ('integrity-check', 1)")

    backend.run_connection(engine, fill)
    outside = backend.make_engine(isolation_level="AUTOCOMMIT")
    backend.run_connection(outside, lambda c: c.exec_driver_sql("VACUUM"))
    backend.run_connection(engine, check)


def test_a_table_may_have_vectors_too(backend, engine):
    table = make(None, Column("embedding", Vector(2)), vector_index("ix_article_embedding", "embedding", metric="l2"))
    engine = backend.make_engine(vector_skip_missing_index=True) if backend.name == "sqlite_numpy" else engine

    def check(connection: Connection) -> None:
        table.metadata.create_all(connection)
        connection.execute(insert(table), [{**row, "embedding": [row["id"], 0]} for row in ROWS])
        assert found(connection, table) == [1, 2]
        near = nearest(select(table.c.id), table.c.embedding, [2, 0], k=1).subquery()
        both = match_text(select(table.c.id).join(near, near.c.id == table.c.id), table, "red")
        assert connection.scalars(both).all() == [2]
        table.metadata.drop_all(connection)

    backend.run_connection(engine, check)


@SQLITE
@pytest.mark.parametrize("side", ["keys", "tuned", "centroids", "content"])
def test_an_index_leaves_a_table_alone_whose_name_is_like_that_of_its_own(backend, engine, side):
    table, name = make(), f"ix_article_text_{side}"
    (index,) = table.indexes

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.exec_driver_sql(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, secret TEXT)")
        connection.exec_driver_sql(f"INSERT INTO {name} VALUES (1, 'kept')")
        assert sorted(inspect(connection).get_table_names()) == ["article", name]
        connection.execute(insert(table), ROWS)
        assert found(connection, table) == [1, 2]
        index.drop(connection)
        if side != "content":
            with pytest.raises(IndexNotUsable, match=f"and {name} is the name of another one"):
                index.create(connection)
        table.drop(connection)
        assert connection.exec_driver_sql(f"SELECT * FROM {name}").all() == [(1, "kept")]

    backend.run_connection(engine, check)


def test_another_schema(backend, engine):
    def check(connection: Connection) -> None:
        create = "CREATE SCHEMA" if backend.family == "postgresql" else "ATTACH DATABASE ':memory:' AS"
        connection.exec_driver_sql(f'{create} "other one"')
        table = make(schema="other one")
        table.create(connection)
        connection.execute(insert(table), ROWS)
        assert found(connection, table) == [1, 2]
        table.drop(connection)
        # The same under a map from a schema in the declaration to one in the database.
        plain = make(schema="tenant")
        mapped = connection.execution_options(schema_translate_map={"tenant": "other one"})
        plain.create(mapped)
        mapped.execute(insert(plain), ROWS)
        assert found(mapped, plain, "fox") == [1]
        plain.drop(mapped)

    backend.run_connection(engine, check)


@POSTGRESQL
def test_a_database_without_the_index_is_searched_by_a_scan(backend, engine):
    table = make()
    (index,) = table.indexes

    def check(connection: Connection) -> None:
        table.create(connection)
        index.drop(connection)
        connection.execute(insert(table), ROWS)
        assert found(connection, table) == [1, 2]

    backend.run_connection(engine, check)


@SQLITE
def test_sqlite_says_that_the_index_is_missing_until_somebody_makes_it(backend, engine):
    table, other = make(), make()
    (index,) = table.indexes
    other.indexes.clear()
    backend.create_all(engine, other.metadata)
    backend.run_connection(engine, lambda c: c.execute(insert(other), ROWS))
    with pytest.raises(IndexNotUsable, match="ix_article_text: this database has no such text index"):
        backend.run_connection(engine, lambda c: found(c, table))
    second = backend.make_engine()

    def check(connection: Connection) -> None:
        # Known to an engine that did not make it.
        backend.run_connection(second, index.create)
        assert found(connection, table) == [1, 2]

    def search(connection: Connection) -> list[Any]:
        return found(connection, table)

    backend.run_connection(second, index.create)
    assert backend.run_connection(engine, search) == [1, 2]
    backend.run_connection(second, index.drop)
    with pytest.raises(Exception, match="ix_article_text"):
        backend.run_connection(engine, search)


@POSTGRESQL
def test_the_gin_index_serves(backend, engine):
    table = make()

    def check(connection: Connection) -> None:
        table.create(connection)
        number = func.generate_series(1, 20_000).column_valued("number")
        rows = select(number, func.concat("w", number % 997), func.concat("common red w", number % 1009, " tail"))
        connection.execute(insert(table).from_select(["id", "title", "body"], rows))
        connection.exec_driver_sql("ANALYZE article")
        for query in ("w17", '"common red w5"', "w17 w23 -tail", "w17 or w400"):
            stmt = match_text(select(table.c.id).where(table.c.id > 5), table, query)
            _, plan = support_of(connection.dialect).explain(connection, stmt)
            assert "Bitmap Index Scan on ix_article_text" in plan
            assert "Seq Scan" not in plan

    backend.run_connection(engine, check)


@SQLITE
def test_the_fts5_table_serves(backend, engine):
    table = make()

    def check(connection: Connection) -> None:
        table.create(connection)
        stmt = match_text(select(table.c.id).where(table.c.id > 5), table, "red")
        _, plan = support_of(connection.dialect).explain(connection, stmt)
        assert "SCAN ix_article_text VIRTUAL TABLE INDEX" in plan
        assert "SEARCH article USING INTEGER PRIMARY KEY (rowid=?)" in plan
        assert "SCAN article" not in plan

    backend.run_connection(engine, check)


@pytest.mark.backends("sqlite_numpy")
def test_without_the_plugin_sqlite_says_what_to_add(backend):
    engine = backend.make_engine(plugins=[])
    table = make()
    with pytest.raises(PluginMissing, match="create_engine"):
        backend.run_connection(engine, table.create)
    with pytest.raises(PluginMissing, match="create_engine"):
        backend.run_connection(engine, lambda c: found(c, table))


@SQLITE
def test_an_sqlite_without_fts5_is_refused(backend, engine):
    table = make()

    def check(connection: Connection) -> None:
        settings = settings_of(connection.dialect)
        assert settings.has_fts5
        settings.has_fts5 = False  # what prepare() finds where it is not compiled in
        table_alone = Table("article", MetaData(), Column("id", Integer, primary_key=True))
        with pytest.raises(IndexNotUsable, match="ix_article_text: this Python's SQLite has no FTS5"):
            table.create(connection)
        table_alone.drop(connection)

    backend.run_connection(engine, check)


@SQLITE
@pytest.mark.parametrize(
    "columns",
    [
        (Column("a", Integer, primary_key=True), Column("b", Integer, primary_key=True)),
        (Column("a", LargeBinary, primary_key=True),),
        (),
    ],
    ids=["composite", "blob", "none"],
)
def test_sqlite_refuses_a_key_that_numbers_no_rows(backend, engine, columns):
    copies = [Column(c.name, c.type, primary_key=True) for c in columns]
    table = Table("t", MetaData(), *copies, Column("body", Text), text_index("ix_t", "body"))
    with pytest.raises(
        IndexNotUsable, match="a text index on SQLite needs a primary key of one integer or text column"
    ):
        backend.run_connection(engine, table.create)


@POSTGRESQL
def test_composite_keys_are_searched_on_postgresql(backend, engine):
    table = Table(
        "t",
        MetaData(),
        Column("a", Integer, primary_key=True),
        Column("b", Integer, primary_key=True),
        Column("body", Text),
        text_index("ix_t", "body"),
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"a": a, "b": b, "body": "red"} for a in (2, 1) for b in (2, 1)])
        rows = connection.execute(match_text(select(table.c.a, table.c.b), table, "red", 3)).all()
        assert [tuple(row)[:2] for row in rows] == [(1, 1), (1, 2), (2, 1)]

    backend.run_connection(engine, check)


@POSTGRESQL
def test_any_configuration_of_postgresql(backend, engine):
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("body", Text),
        text_index("ix_t", "body", language="german"),
        text_index("ix_u", "body", language="public.plain"),
    )

    def check(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TEXT SEARCH CONFIGURATION public.plain (COPY = pg_catalog.simple)")
        table.create(connection)
        connection.execute(insert(table), [{"id": 1, "body": "die Häuser"}, {"id": 2, "body": "das Haus"}])
        for name, expected in (("ix_t", [1, 2]), ("ix_u", [2])):
            stmt = match_text(select(table.c.id), table, "haus", index=name)
            assert sorted(connection.scalars(stmt)) == expected
        # Of a stop word nothing is left, and what is to be without something is not everything else.
        for query in ("das -katze", "das", "-katze"):
            stmt = match_text(select(table.c.id), table, query, index="ix_t")
            assert connection.scalars(stmt).all() == []

    backend.run_connection(engine, check)


@SQLITE
def test_sqlite_searches_other_languages_unstemmed_and_says_so_once(backend, engine, caplog):
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("body", Text),
        text_index("ix_t", "body", language=f"lang_{backend.name}"),
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": 1, "body": "die Häuser"}, {"id": 2, "body": "das Haus"}])
        for _ in range(2):
            assert connection.scalars(match_text(select(table.c.id), table, "haus")).all() == [2]

    backend.run_connection(engine, check)
    assert [r.message for r in caplog.records if "has no stemmer" in r.message] == [
        f"FTS5 has no stemmer for lang_{backend.name}: SQLite finds words as they are written"
    ]


def test_types_that_are_text_are_accepted(backend, engine):
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", Folded(20)),
        Column("b", Unicode(20)),
        Column("c", Text().with_variant(String(99), "postgresql")),
        text_index("ix_t", "a", "b", "c", weights=(1, 0.5, 1)),
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(
            insert(table),
            [{"id": number, "a": None, "b": None, "c": None, name: "red"} for number, name in enumerate("abc", 1)],
        )
        assert found(connection, table) == [1, 2, 3]

    backend.run_connection(engine, check)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("a;b", "body"), {}, InvalidIdentifier, "is no plain identifier"),
        (("x" * 64, "body"), {}, InvalidIdentifier, "longer than 63 bytes"),
        (("select", "body"), {}, InvalidIdentifier, "reserved word"),
        (("ix",), {}, InvalidOption, "needs at least one column"),
        (("ix", "body", "body"), {}, InvalidOption, "names each column once"),
        (("ix", 3), {}, InvalidOption, "takes names of columns, got int"),
        (("ix", "body"), {"weights": (1, 1)}, InvalidOption, "a number for each of the 1 columns"),
        (("ix", "body"), {"weights": "1"}, InvalidOption, "a number for each of the 1 columns"),
        (("ix", "body"), {"weights": 1}, InvalidOption, "a number for each of the 1 columns"),
        *[
            (("ix", "body"), {"weights": [value]}, InvalidOption, "a weight is a number above 0 and up to 1")
            for value in (0, -1, 1.5, True, "1", float("nan"), float("inf"), None)
        ],
        (("ix", *"abcde"), {"weights": (1, 0.8, 0.6, 0.4, 0.2)}, InvalidOption, "at most 4 different weights, got 5"),
        *[
            (("ix", "body"), {"language": value}, InvalidIdentifier, "language")
            for value in ("", "a b", "a'b", "a.b.c", "pg_catalog.", None, 3, "select")
        ],
    ],
)
def test_declarations_are_checked(arguments, options, error, message):
    with pytest.raises(error, match=message):
        text_index(*arguments, **options)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column("other", Text), "no column named 'body' is present"),
        (Column("body", Integer), "t.body is no text column, its type is Integer"),
        (Column("body", Enum("a", "b", name="letter")), "t.body is no text column"),
        (Column("body", LargeBinary), "t.body is no text column"),
    ],
)
def test_columns_are_checked_when_the_index_meets_its_table(column, message):
    with pytest.raises(Exception, match=message):
        Table("t", MetaData(), Column("id", Integer, primary_key=True), column, text_index("ix_t", "body"))


def test_weights_become_labels_by_rank():
    def labels(*weights: float) -> tuple[str, ...]:
        index = text_index("ix", *"abcdef"[: len(weights)], weights=weights)
        table = Table("t", MetaData(), *(Column(name, Text) for name in "abcdef"), index)
        return text_indexes(table)[0][1].spec.labels

    assert labels(1) == labels(0.2) == ("A",)
    assert labels(0.1, 1, 0.5, 0.2) == ("D", "A", "B", "C")
    assert labels(0.5, 0.5, 1, 1, 0.5) == ("B", "B", "A", "A", "B")
    index = text_index("ix", "a", "b", weights=(0.3, 0.9))
    table = Table("t", MetaData(), Column("a", Text), Column("b", Text), index)
    assert text_indexes(table)[0][1].spec.label_weights == (0.3, 0.3, 0.3, 0.9)
    assert "text_index" not in str(CreateIndex(Index("ix_plain", table.c.a)))


@SQLITE
def test_what_the_index_refuses_leaves_the_row_out(backend, engine):
    table = make(None, Column("code", Integer, CheckConstraint("code > 0"), unique=True))

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{**row, "code": row["id"]} for row in ROWS])
        for values in ({"id": 3, "body": "red", "code": -1}, {"id": 1, "body": "blue", "code": 9}):
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(insert(table), values)
        connection.execute(text("INSERT OR REPLACE INTO article (id, body, code) VALUES (7, 'new red', 2)"))
        assert found(connection, table) == [1, 7]
        connection.exec_driver_sql("INSERT INTO ix_article_text (ix_article_text, rank) VALUES ('integrity-check', 1)")

    backend.run_connection(engine, check)
