"""The engine plugin: ``create_engine(url, plugins=["sqla_vector"])``, ``attach(engine)``, ``detach(engine)``.

On PostgreSQL the plugin makes vectors travel in binary, finds an extension outside the search path, and lets
reflection know the types.  On SQLite it loads sqlite-vec, or registers numpy functions where that is impossible,
and runs the statements of a vector index.  It touches the one engine it is given and nothing global.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, CreateEnginePlugin, Engine
from sqlalchemy.engine.url import URL

from sqla_vector.dialects import settings_of
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_identifier
from sqla_vector.types import DIALECTS, support_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Capabilities", "VectorPlugin", "acapabilities", "attach", "capabilities", "detach"]

_PREPARED: Final = "sqla_vector.prepared"


@dataclass(frozen=True)
class _Listeners:
    connect: Callable[..., None]
    checkout: Callable[..., None]


_ATTACHED: WeakKeyDictionary[Engine, _Listeners] = WeakKeyDictionary()


def _sync_engine(engine: Engine | AsyncEngine) -> Engine:
    found = getattr(engine, "sync_engine", engine)
    if not isinstance(found, Engine):
        raise InvalidOption(f"expected an Engine or AsyncEngine, got {type(engine).__name__}")
    return found


def connection_of(connection: Any, for_async: str) -> Connection:
    """Return the Connection of a Connection or Session; ``for_async`` names the function for the async ones.

    Raises:
        InvalidOption: it is something else.
    """
    # Not isinstance(..., Session): importing sqlalchemy.orm takes longer than importing this package.
    bind = connection if isinstance(connection, Connection) else getattr(connection, "connection", lambda: None)()
    if not isinstance(bind, Connection):
        raise InvalidOption(
            f"expected a Connection or Session, got {type(connection).__name__}; for async: {for_async}"
        )
    return bind


def attach(
    engine: Engine | AsyncEngine,
    *,
    schema: str | None = None,
    load_extension: bool = True,
    skip_missing_index: bool = False,
) -> None:
    """Serve an engine: prepare its connections, the ones in its pool included.

    Attach before transactions are open: a connection that is checked out now is prepared when it is checked
    out again.  Attaching twice is attaching once.

    Args:
        engine: an Engine or AsyncEngine of PostgreSQL or SQLite.
        schema: PostgreSQL: the schema of the extension ``vector``, when it is not on the search path; found
            by itself if the extension exists when the engine first connects.
        load_extension: SQLite: False does without sqlite-vec even where it could be loaded.
        skip_missing_index: SQLite: where sqlite-vec is missing, leave vector indexes out instead of refusing
            to create them; searches are exact then.

    Raises:
        InvalidOption: no engine, or an engine of another database.
    """
    sync = _sync_engine(engine)
    dialect = sync.dialect
    support = support_of(dialect)
    settings = settings_of(dialect)
    if schema is not None:
        settings.schema = check_identifier(schema, "schema")
    settings.load_extension = load_extension
    settings.skip_missing_index = skip_missing_index
    settings.attached = True
    if sync in _ATTACHED:
        return
    support.attach(dialect)
    # Weakly: settings live as long as the dialect, which the engine holds.
    known = ref(sync)

    def forget_compiled() -> None:
        if (alive := known()) is not None:
            alive.clear_compiled_cache()

    settings.forget_compiled = forget_compiled

    def connect(dbapi_connection: Any, record: Any) -> None:
        record.info[_PREPARED] = support.prepare_connection(dialect, dbapi_connection)

    def checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        if not record.info.get(_PREPARED):
            connect(dbapi_connection, record)

    # First, so that what the user's own listeners set on the connection stands over ours.
    event.listen(sync, "connect", connect, insert=True)
    event.listen(sync, "checkout", checkout)
    _ATTACHED[sync] = _Listeners(connect, checkout)
    sync.clear_compiled_cache()


def attach_connection(connection: Connection) -> None:
    """Attach a connection's engine and prepare this very connection, whose transaction stays as it is."""
    dialect = connection.dialect
    if not settings_of(dialect).attached:
        attach(connection.engine)
        dbapi_connection = connection.connection.dbapi_connection
        support_of(dialect).prepare_connection(dialect, dbapi_connection, in_transaction=True)


def detach(engine: Engine | AsyncEngine) -> None:
    """Undo :func:`attach`; detaching an engine that is not attached does nothing."""
    sync = _sync_engine(engine)
    listeners = _ATTACHED.pop(sync, None)
    if listeners is None:
        return
    event.remove(sync, "connect", listeners.connect)
    event.remove(sync, "checkout", listeners.checkout)
    settings_of(sync.dialect).attached = False
    DIALECTS[sync.dialect.name].detach(sync.dialect)
    sync.clear_compiled_cache()


class VectorPlugin(CreateEnginePlugin):
    """Attaches an engine as it is created.

    ``create_engine(url, plugins=["sqla_vector"])`` or ``?plugin=sqla_vector`` in the URL.  The options of
    :func:`attach` are the keyword arguments ``vector_schema``, ``vector_extension`` and
    ``vector_skip_missing_index``, of ``create_engine`` or (the first) of the URL's query.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        self._keep_driver = "module" in kwargs or "creator" in kwargs or "async_creator" in kwargs
        self._options: dict[str, Any] = {
            "schema": kwargs.pop("vector_schema", None) or url.query.get("vector_schema"),
            "load_extension": _flag(kwargs.pop("vector_extension", True), "vector_extension"),
            "skip_missing_index": _flag(kwargs.pop("vector_skip_missing_index", False), "vector_skip_missing_index"),
        }
        self._connect_args: dict[str, Any] = {}

    def update_url(self, url: URL) -> URL:
        return url.difference_update_query(["vector_schema"])

    def handle_dialect_kwargs(self, dialect_cls: type[Any], dialect_args: dict[str, Any]) -> None:
        support = DIALECTS.get(dialect_cls.name)
        if support is not None and not self._keep_driver and self._options["load_extension"]:
            self._connect_args = support.choose_driver(dialect_cls.driver, dialect_args)

    def engine_created(self, engine: Engine) -> None:
        attach(engine, **self._options)
        if self._connect_args:

            @event.listens_for(engine, "do_connect")
            def connect(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
                parameters.update(self._connect_args)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidOption(f"{name} must be True or False, got {value!r}")
    return value


@dataclass(frozen=True)
class Capabilities:
    """What a database can do for vectors, as found on a connection."""

    database: str
    """``postgresql`` or ``sqlite``."""
    driver: str
    """The driver, for example ``psycopg``; on SQLite with the module's name."""
    extension: str | None
    """Version of pgvector or sqlite-vec, None where it is missing."""
    schema: str | None
    """PostgreSQL: the extension's schema."""
    index_methods: tuple[str, ...]
    """``hnsw``, ``ivfflat``, ``vec0``."""
    half: bool
    sparse: bool
    bit: bool
    iterative_scan: bool
    """Whether filtered index searches return k rows (pgvector 0.8; vec0 always)."""
    binary_wire: bool
    """Whether vectors are sent in binary."""

    def __str__(self) -> str:
        return "\n".join(f"{name:15} {_shown(value)}" for name, value in asdict(self).items())


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return {None: "missing", True: "yes", False: "no"}.get(value, str(value))  # type: ignore[call-overload,no-any-return]


def capabilities(bind: Engine | Connection) -> Capabilities:
    """Return what the database behind an engine or connection can do for vectors.

    Raises:
        InvalidOption: it is no engine or connection of PostgreSQL or SQLite.
    """
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            return capabilities(connection)
    if not isinstance(bind, Connection):
        raise InvalidOption(f"expected an Engine or Connection, got {type(bind).__name__}; for async: acapabilities()")
    support = support_of(bind.dialect)
    return Capabilities(
        database=bind.dialect.name,
        **support.capabilities(bind),
    )


async def acapabilities(engine: AsyncEngine) -> Capabilities:
    """Return the same as :func:`capabilities` for an AsyncEngine."""
    async with engine.connect() as connection:
        return await connection.run_sync(capabilities)
