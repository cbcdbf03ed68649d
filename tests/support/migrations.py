"""A real Alembic project in a temporary directory, driven by Alembic's own commands in this process.

::

    project = Project(tmp_path, backend)
    project.revision(metadata)          # alembic revision --autogenerate
    project.upgrade()                   # alembic upgrade head
    assert project.drift(metadata) == []
    project.downgrade("-1")
    project.sql("upgrade", "head")      # alembic upgrade head --sql
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine

import sqla_vector.alembic
from tests.support.backends import AnyEngine, Backend

ENV = """\
from alembic import context

import sqla_vector.alembic

config = context.config
arguments = {"target_metadata": config.attributes.get("metadata"), **config.attributes.get("options", {})}


def run(connection):
    context.configure(connection=connection, **sqla_vector.alembic.options(**arguments))
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(
        url=config.attributes["url"], literal_binds=True, **sqla_vector.alembic.options(**arguments)
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    config.attributes["connected"](run)
"""

TEMPLATE = '''\
"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''


class Project:
    """A directory with ``env.py`` and revisions, and the database of a backend.

    Args:
        directory: where to make it.
        backend: whose database is migrated.
        engine: one of the backend's engines; a new one if it is not given.
        **options: further arguments of ``context.configure()``, such as ``render_as_batch=True``.
    """

    def __init__(self, directory: Path, backend: Backend, engine: AnyEngine | None = None, **options: Any) -> None:
        self.directory = directory / "migrations"
        self.versions = self.directory / "versions"
        self.versions.mkdir(parents=True)
        (self.directory / "env.py").write_text(ENV)
        (self.directory / "script.py.mako").write_text(TEMPLATE)
        self.backend = backend
        self.engine = backend.make_engine() if engine is None else engine
        if backend.family == "sqlite":
            options.setdefault("render_as_batch", True)
        self.options = options
        self.attributes: dict[str, Any] = {}
        """What revisions find in ``op.get_context().config.attributes``, such as a function to call."""
        self._count = 0

    def config(self, metadata: MetaData | None = None, output: io.StringIO | None = None) -> Config:
        """Return the configuration of one command."""
        config = Config(output_buffer=output)
        config.set_main_option("script_location", str(self.directory))
        config.attributes.update(
            self.attributes, metadata=metadata, options=self.options, url=self.backend.url, connected=self._connected
        )
        return config

    def _connected(self, function: Callable[[Connection], None]) -> None:
        if isinstance(self.engine, AsyncEngine):
            self.backend.wait(self._run_async(function))
            return
        with self.engine.connect() as connection:
            function(connection)

    async def _run_async(self, function: Callable[[Connection], None]) -> None:
        assert isinstance(self.engine, AsyncEngine)
        async with self.engine.connect() as connection:
            await connection.run_sync(function)

    def revision(self, metadata: MetaData, message: str = "change") -> Path:
        """``alembic revision --autogenerate``: write a revision and return its file."""
        self._count += 1
        script = command.revision(self.config(metadata), message, autogenerate=True, rev_id=f"{self._count:04}")
        assert not isinstance(script, list)
        assert script is not None
        return Path(script.path)

    def write(self, upgrade: str, downgrade: str = "pass") -> Path:
        """Write a revision by hand; the arguments are the bodies of the two functions."""
        self._count += 1
        before = f"{self._count - 1:04}" if self._count > 1 else None
        path = self.versions / f"{self._count:04}_by_hand.py"
        indented = ["\n".join(f"    {line}" for line in body.strip("\n").splitlines()) for body in (upgrade, downgrade)]
        path.write_text(
            '"""by hand"""\nfrom alembic import op\nimport sqlalchemy as sa\nimport sqla_vector.alembic\n\n'
            f"revision = {f'{self._count:04}'!r}\ndown_revision = {before!r}\n\n\n"
            f"def upgrade():\n{indented[0]}\n\n\ndef downgrade():\n{indented[1]}\n"
        )
        return path

    def upgrade(self, revision: str = "head") -> None:
        """``alembic upgrade``."""
        command.upgrade(self.config(), revision)

    def downgrade(self, revision: str = "-1") -> None:
        """``alembic downgrade``."""
        command.downgrade(self.config(), revision)

    def sql(self, direction: str, revision: str) -> str:
        """``alembic upgrade --sql`` or ``alembic downgrade --sql``: return the script."""
        output = io.StringIO()
        getattr(command, direction)(self.config(output=output), revision, sql=True)
        return output.getvalue()

    def drift(self, metadata: MetaData) -> list[Any]:
        """Return the differences that autogenerate would write down, as tuples; none after a complete migration."""
        found: list[Any] = []

        def compare(connection: Connection) -> None:
            options = {"target_metadata": metadata, **self.options}
            context = MigrationContext.configure(connection, opts=sqla_vector.alembic.options(**options))
            script = produce_migrations(context, metadata)
            assert script.upgrade_ops is not None
            found.extend(script.upgrade_ops.as_diffs())

        self._connected(compare)
        return found
