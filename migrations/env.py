"""How Alembic reaches the database and the models of the examples.

From the root of the repository::

    alembic upgrade head                                        # into .demo/migrated.db
    alembic history
    alembic check                                               # are the models and the database the same?
    alembic downgrade -1
    alembic upgrade 0001:0003 --sql                             # the statements, for somebody else to run

    python examples/search_python_docs.py --url sqlite:///.demo/migrated.db
    export SQLA_VECTOR_EXAMPLES_URL=postgresql+psycopg://user:password@localhost/app    # the same on PostgreSQL
"""

from __future__ import annotations

import os
from logging.config import fileConfig

from alembic import context
from search_python_docs import DATABASE, Base
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import sqla_vector.alembic  # line 1 of 2: the operations and the comparison

if context.config.config_file_name is not None:
    # Without the argument every logger that exists already would be silent from here on.
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

url = os.environ.get("SQLA_VECTOR_EXAMPLES_URL") or f"sqlite:///{DATABASE.with_name('migrated.db')}"

OPTIONS = {
    "target_metadata": Base.metadata,
    # SQLite changes a table by copying it; elsewhere a batch is an ordinary ALTER TABLE.
    "render_as_batch": True,
    # What a revision committed by itself then has its number in the database too.
    "transaction_per_migration": True,
}


def run_offline() -> None:
    """Write SQL, for ``--sql``."""
    context.configure(url=url, literal_binds=True, **sqla_vector.alembic.options(**OPTIONS))
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run the migrations."""
    DATABASE.parent.mkdir(exist_ok=True)
    engine = create_engine(url, plugins=["sqla_vector"], poolclass=NullPool)
    # connect(), not begin(): some operations commit as they go, which a transaction around all would not allow.
    with engine.connect() as connection:
        context.configure(connection=connection, **sqla_vector.alembic.options(**OPTIONS))  # line 2 of 2
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
