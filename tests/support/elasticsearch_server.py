"""The Elasticsearch server that the tests share.

It is the one that ``SQLA_VECTOR_TEST_ELASTICSEARCH_URL`` names, or else a node that is started for the run. That takes
about ten seconds and 700 MB, so the processes of pytest-xdist share it: the first that needs it starts it, the
controller holds its standard input, and so it ends with the run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.support.elasticsearch import (
    STOP_TIMEOUT,
    URL_VARIABLE,
    Node,
    new_directory,
    own_node,
    start_somewhere,
    why_unavailable,
)


class Server(Protocol):
    """Somewhere Elasticsearch answers."""

    @property
    def url(self) -> str: ...


class ExternalServer:
    """A server that is not ours to stop.

    Args:
        url: where it answers.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")


class Run:
    """What the processes of one run of pytest-xdist share: made by the controller, which holds the node's input.

    Attributes:
        directory: to be handed to :func:`shared_server` in each of the processes.
    """

    def __init__(self) -> None:
        self.directory = new_directory()
        os.mkfifo(self.directory / "input")
        # Open for reading too, or this would wait for the node.
        self._input = os.open(self.directory / "input", os.O_RDWR)

    def close(self) -> None:
        """End the node, if there is one, which removes the directory."""
        state = self.directory / "node.json"
        pid = json.loads(state.read_text())["pid"] if state.exists() else None
        os.close(self._input)
        deadline = time.monotonic() + STOP_TIMEOUT
        while pid and self.directory.exists() and _exists(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(self.directory, ignore_errors=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def shared_server(run: Path | None) -> Iterator[Server]:
    """Connect to the external server, or to the run's node, which is started where it is not there yet.

    Args:
        run: the directory of the controller's :class:`Run`; None when there is one process only.

    Raises:
        RuntimeError: there is neither; the message says how to get one.
    """
    if reason := why_unavailable():
        raise RuntimeError(reason)
    if external := os.environ.get(URL_VARIABLE):
        yield ExternalServer(external)
    elif run is None:
        with own_node() as node:
            yield node
    else:
        yield _server_of_run(run)


def _server_of_run(run: Path) -> Server:
    from tests.support.elasticsearch_home import file_lock

    state = run / "node.json"
    with file_lock(run / "lock"):
        if not state.exists():
            node = Node(run)
            stdin = os.open(run / "input", os.O_RDONLY)
            try:
                start_somewhere(node, stdin)
            finally:
                os.close(stdin)
            state.write_text(json.dumps({"url": node.url, "pid": node.pid}))
            node.leave()
    return ExternalServer(json.loads(state.read_text())["url"])
