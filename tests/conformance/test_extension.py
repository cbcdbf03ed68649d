"""The extension of PostgreSQL: created when it may be, asked for when it may not, found wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine

import sqla_vector as sv
from sqla_vector import BitVector, ExtensionMissing, HalfVector, SparseArray, SparseVector, Vector, vector_index
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import statements_of, sync_engine

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("e", Vector(3)),
    Column("h", HalfVector(3)),
    Column("s", SparseVector(3)),
    Column("b", BitVector(3)),
    vector_index("ix_item_e", "e", metric="cosine"),
)

pytestmark = pytest.mark.backends(family="postgresql")


def has_extension(connection: Connection) -> bool:
    return bool(connection.scalar(text("SELECT count(*) FROM pg_extension WHERE extname = 'vector'")))


def tables(connection: Connection) -> list[str]:
    return inspect(connection).get_table_names()


@pytest.fixture
def administrator(backend: Backend) -> Iterator[Engine]:
    engine = create_engine(backend.url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def limited_role(administrator: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A role that may create tables but no extension."""
    name = f"limited_{abs(hash(request.node.nodeid)):x}"
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'tiger' NOSUPERUSER NOCREATEDB NOCREATEROLE"))
        connection.execute(text(f"GRANT CREATE, USAGE ON SCHEMA public TO {name}"))
    yield name
    with administrator.connect() as connection:
        connection.execute(text(f"DROP OWNED BY {name} CASCADE"))
        connection.execute(text(f"DROP ROLE {name}"))


def works(connection: Connection) -> None:
    """Use every type, function and operator once, and take the rows away again."""
    connection.execute(insert(item).values(id=1, e=[1, 2, 3], h=[1, 2, 3], s=[0, 2, 0], b=[1, 0, 1]))
    connection.execute(insert(item), [{"id": n, "e": [n, 2, 3], "h": None} for n in (2, 3)])
    connection.execute(update(item).where(item.c.id == 1).values(e=item.c.e * [1, 1, 1] + [0, 0, 0]))
    row = connection.execute(
        select(
            item,
            sv.cosine_distance(item.c.e, [1, 2, 3]),
            sv.l2_distance(item.c.e, [1, 2, 4]),
            sv.max_inner_product(item.c.h, [1, 0, 0]),
            sv.l1_distance(item.c.s, [0, 0, 0]),
            sv.hamming_distance(item.c.b, [1, 1, 1]),
            sv.jaccard_distance(item.c.b, [1, 0, 1]),
            sv.l2_norm(item.c.h),
            sv.vector_dims(item.c.e),
            sv.subvector(sv.l2_normalize(item.c.e.concat([1])), 1, 2),
            sv.binary_quantize(item.c.e),
        ).where(item.c.id == 1)
    ).one()
    assert row.e.tolist() == row.h.tolist() == [1, 2, 3]
    assert row.s == SparseArray(3, {1: 2.0})
    assert row.b.tolist() == [True, False, True]
    assert row[5:13] == pytest.approx((0.0, 1.0, -1.0, 2.0, 1.0, 0.0, 14**0.5, 3), rel=1e-2, abs=1e-6)
    assert row[14].tolist() == [True, True, True]
    assert connection.scalar(select(sv.avg(item.c.e))).tolist() == [2, 2, 3]
    assert len(connection.execute(sv.nearest(select(item.c.id), item.c.e, [1, 2, 3], k=2)).all()) == 2
    connection.execute(item.delete())


def test_create_all_creates_the_extension_once(backend: Backend, engine: AnyEngine) -> None:
    with statements_of(engine) as sent:
        backend.create_all(engine, metadata)
    assert sum("CREATE EXTENSION" in statement for statement in sent) == 1
    assert backend.run_connection(engine, has_extension)
    backend.run_connection(engine, works)
    backend.drop_all(engine, metadata)
    with statements_of(engine) as sent:
        backend.create_all(engine, metadata)
    assert not [statement for statement in sent if "CREATE EXTENSION" in statement]


def test_tables_without_vectors_need_no_extension(backend: Backend, engine: AnyEngine) -> None:
    plain = MetaData()
    Table("plain", plain, Column("id", Integer, primary_key=True))
    backend.create_all(engine, plain)
    assert not backend.run_connection(engine, has_extension)


def test_one_table_created_alone_creates_the_extension(backend: Backend, engine: AnyEngine) -> None:
    backend.run_connection(engine, lambda connection: item.create(connection))
    copy = item.to_metadata(MetaData(), name="copy")
    for index in list(copy.indexes):
        copy.indexes.discard(index)
    backend.run_connection(engine, lambda connection: copy.create(connection))
    assert set(backend.run_connection(engine, tables)) == {"copy", "item"}


def test_a_copied_table_creates_the_extension_too(backend: Backend, engine: AnyEngine) -> None:
    copies = MetaData()
    item.to_metadata(copies)
    backend.create_all(engine, copies)
    backend.run_connection(engine, works)


def test_creating_the_extension_can_be_refused(backend: Backend, engine: AnyEngine) -> None:
    def refuse(connection: Connection) -> None:
        metadata.create_all(connection.execution_options(vector_create_extension=False))

    with statements_of(engine) as sent, pytest.raises(Exception, match='type "vector" does not exist'):
        backend.run_connection(engine, refuse)
    assert not [statement for statement in sent if "CREATE EXTENSION" in statement]
    assert backend.run_connection(engine, tables) == []
    # The option also belongs to an engine; and with the extension there nothing is refused.
    refusing = backend.make_engine(execution_options={"vector_create_extension": False})
    with pytest.raises(Exception, match='type "vector" does not exist'):
        backend.create_all(refusing, metadata)
    backend.run_connection(engine, lambda connection: connection.execute(text("CREATE EXTENSION vector")))
    backend.create_all(refusing, metadata)
    backend.run_connection(refusing, works)


def test_a_role_without_the_right_gets_the_administrators_statement(
    backend: Backend, administrator: Engine, limited_role: str
) -> None:
    url = backend.url.set(username=limited_role, password="tiger")
    engine = backend.make_engine(url=url)
    with pytest.raises(
        ExtensionMissing, match="ask an administrator to run: CREATE EXTENSION IF NOT EXISTS vector;"
    ) as caught:
        backend.create_all(engine, metadata)
    assert "tiger" not in str(caught.value)
    assert backend.run_connection(engine, tables) == []
    with administrator.connect() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
    backend.create_all(engine, metadata)
    backend.run_connection(engine, works)


@pytest.mark.backends("psycopg")
def test_two_processes_may_create_the_extension_at_once(backend: Backend, engine: AnyEngine) -> None:
    from threading import Barrier, Thread

    assert isinstance(engine, Engine)
    barrier, failures = Barrier(4), list[BaseException]()

    def create(number: int) -> None:
        own = MetaData()
        Table(f"t{number}", own, Column("id", Integer, primary_key=True), Column("e", Vector(2)))
        barrier.wait()
        try:
            own.create_all(engine)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(backend.run_connection(engine, tables)) == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("schema", ["extensions", "My$Schema"])
@pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
def test_an_extension_outside_the_search_path_is_found(backend: Backend, administrator: Engine, schema: str) -> None:
    with administrator.connect() as connection:
        connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        connection.execute(text(f'CREATE EXTENSION vector SCHEMA "{schema}"'))
    engine = backend.make_engine()
    backend.create_all(engine, metadata)
    backend.run_connection(engine, works)
    found = backend.run_connection(engine, sv.capabilities)
    assert found.schema == schema

    def reflected(connection: Connection) -> dict[str, Any]:
        return {column["name"]: column["type"] for column in inspect(connection).get_columns("item")}

    types = backend.run_connection(engine, reflected)
    assert [type(types[name]) for name in ("e", "h", "s")] == [Vector, HalfVector, SparseVector]
    assert types["e"].dim == 3


@pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
def test_the_extension_is_created_in_the_schema_that_is_named(backend: Backend, administrator: Engine) -> None:
    with administrator.connect() as connection:
        connection.execute(text("CREATE SCHEMA extensions"))
    engine = backend.make_engine(vector_schema="extensions")
    backend.create_all(engine, metadata)
    backend.run_connection(engine, works)
    assert backend.run_connection(engine, sv.capabilities).schema == "extensions"
    # The same by the URL.
    url: URL = backend.url.update_query_dict({"vector_schema": "extensions"})
    by_url = backend.make_engine(url=url)
    backend.run_connection(by_url, works)
    assert sync_engine(by_url).url.query.get("vector_schema") is None
    statement = select(item.c.e.l2_distance([1, 2, 3]))
    written = str(statement.compile(dialect=sync_engine(engine).dialect))
    assert "OPERATOR(extensions.<->)" in written
    assert "::extensions.VECTOR" in written


@pytest.mark.backends(plugin=True)
def test_the_schema_is_in_the_administrators_statement(backend: Backend, limited_role: str) -> None:
    url = backend.url.set(username=limited_role, password="tiger")
    engine = backend.make_engine(url=url, vector_schema="public")
    with pytest.raises(ExtensionMissing, match="run: CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;"):
        backend.create_all(engine, metadata)


@pytest.mark.backends("psycopg", "asyncpg")
def test_engines_of_two_databases_each_find_their_extension(
    backend: Backend, administrator: Engine, postgresql_server: Any
) -> None:
    with administrator.connect() as connection:
        connection.execute(text("CREATE SCHEMA elsewhere"))
        connection.execute(text("CREATE EXTENSION vector SCHEMA elsewhere"))
    with postgresql_server.database() as url:
        other = backend.make_engine(url=url.set(drivername=backend.url.drivername))
        engine = backend.make_engine()
        for one in (engine, other, engine, other):
            backend.create_all(one, metadata)
            backend.run_connection(one, works)
        if isinstance(other, AsyncEngine):
            backend.wait(other.dispose())
        else:
            other.dispose()


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_search_path_set_by_the_user_is_respected(backend: Backend, administrator: Engine) -> None:
    with administrator.connect() as connection:
        connection.execute(text("CREATE SCHEMA extensions"))
        connection.execute(text("CREATE EXTENSION vector SCHEMA extensions"))
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = public, extensions"))
    engine = backend.make_engine()
    backend.create_all(engine, metadata)
    backend.run_connection(engine, works)
    # It is on the path, so nothing needs its schema.
    assert "OPERATOR(" not in str(select(item.c.e.l2_distance([1, 2, 3])).compile(dialect=sync_engine(engine).dialect))


@pytest.mark.backends("psycopg", "psycopg_async", "asyncpg")
def test_connecting_leaves_no_transaction_open(backend: Backend, administrator: Engine) -> None:
    engine = backend.make_engine()
    states: list[str] = []

    @event.listens_for(sync_engine(engine), "checkout")
    def look(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        with administrator.connect() as connection:
            found = connection.scalars(
                text(
                    "SELECT state FROM pg_stat_activity WHERE datname = current_database()"
                    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            )
            states.extend(found)

    backend.run_connection(engine, lambda connection: connection.execute(text("SELECT 1")))
    assert states
    assert set(states) == {"idle"}


@pytest.mark.backends("psycopg", "asyncpg")
def test_an_old_pgvector_is_named_in_a_warning(
    backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture
) -> None:
    backend.create_all(engine, metadata)
    assert not caplog.records
    with_version = "UPDATE pg_catalog.pg_extension SET extversion = '{}' WHERE extname = 'vector'"
    backend.run_connection(engine, lambda c: c.exec_driver_sql(with_version.format("0.7.4")))
    backend.drop_all(engine, metadata)
    backend.create_all(engine, metadata)
    assert "pgvector 0.7.4 is older than 0.8.2" in caplog.text
    found = backend.run_connection(engine, sv.capabilities)
    assert (found.extension, found.iterative_scan, found.half) == ("0.7.4", False, True)
