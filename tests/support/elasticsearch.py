"""Elasticsearch nodes and clusters, for the tests to stop, kill and start again.

They are started on the loopback interface from jars (:mod:`tests.support.elasticsearch_home`). The node that most tests
share is in :mod:`tests.support.elasticsearch_server`.

A node ends when its standard input does. The operating system sees to that when the process that holds the other end
is killed, so no node outlives a run.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

URL_VARIABLE = "SQLA_VECTOR_TEST_ELASTICSEARCH_URL"
VERSION_VARIABLE = "SQLA_VECTOR_TEST_ELASTICSEARCH_VERSION"

# What is started for each major version of the client.
VERSIONS = {8: "8.19.0", 9: "9.2.0"}
NEWEST = VERSIONS[9]

SETTINGS = {
    "http.type": "netty4",
    "transport.type": "netty4",
    "network.host": "127.0.0.1",
    # Whether a node is ready is asked from outside.
    "discovery.initial_state_timeout": "0s",
    # The full disk of a developer is no failure of a test, and a block that a test sets is its own to take away.
    "cluster.routing.allocation.disk.threshold_enabled": "false",
    "cluster.info.update.interval": "1h",
}

START_TIMEOUT = 180.0
STOP_TIMEOUT = 60.0


def default_version() -> str:
    """Return the version to start: the one that is named, or the one that fits the client that is installed."""
    if named := os.environ.get(VERSION_VARIABLE):
        return named
    try:
        major = int(importlib.metadata.version("elasticsearch").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return NEWEST
    return VERSIONS.get(major, NEWEST)


def why_unavailable() -> str | None:
    """Return the sentence that says how to get a server, or None when there is one."""
    return None if os.environ.get(URL_VARIABLE) else why_no_node()


def why_no_node() -> str | None:
    """Return the sentence that says how to be able to start nodes, or None when they can be started."""
    if os.name != "posix":
        return f"no Elasticsearch: it is started on POSIX systems only; set {URL_VARIABLE} to a server"
    from tests.support import elasticsearch_home

    if missing := elasticsearch_home.why_unavailable(default_version()):
        return f"no Elasticsearch: install {missing}, or set {URL_VARIABLE} to a server"
    return None


class Node:
    """A node on the loopback interface, with its data in ``directory``.

    Args:
        directory: where data and logs are; removed by the node itself when whoever started it is killed.
        version: of Elasticsearch; None for :func:`default_version`.
        name: its name in the cluster.
        heap: Java's notation for the most memory for objects.
        settings: further settings, over the usual ones; without ``discovery.seed_hosts`` it is alone.

    Attributes:
        directory: as above.
        url: where it answers, the same after each start.
        version: of Elasticsearch.
    """

    def __init__(
        self,
        directory: Path,
        *,
        version: str | None = None,
        name: str = "node-1",
        heap: str = "1g",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.version = version or default_version()
        self.name = name
        self.http_port, self.transport_port = free_ports(2)
        self.directory = directory
        self._heap = heap
        self._settings = {"cluster.name": f"sqla-vector-{uuid.uuid4().hex[:8]}", **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self, *, wait: bool = True, stdin: int = subprocess.PIPE) -> None:
        """Start it, also after :meth:`stop` or :meth:`kill`, on the same data and ports.

        Args:
            wait: whether to return when it is ready only; see :meth:`wait_until_ready`.
            stdin: the end of a pipe that somebody else holds at its other end, in place of one of our own.

        Raises:
            RuntimeError: it ended at once; the message has the end of its output.
        """
        assert self._process is None, "it runs"
        from tests.support import elasticsearch_home

        home = elasticsearch_home.make_home(self.version)
        for part in ("logs", "tmp"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        settings = {
            **SETTINGS,
            "path.home": str(home),
            "path.data": str(self.directory / "data"),
            "path.logs": str(self.directory / "logs"),
            "node.name": self.name,
            "http.port": str(self.http_port),
            "transport.port": str(self.transport_port),
            **self._settings,
        }
        if "discovery.seed_hosts" not in settings:
            settings["discovery.type"] = "single-node"
        command = [
            str(elasticsearch_home.java(self.version)),
            f"-Xmx{self._heap}",
            f"-Djava.io.tmpdir={self.directory / 'tmp'}",
            # On the class path it does not start.
            *("--module-path", str(home / "server"), "--add-modules", "ALL-MODULE-PATH,jdk.incubator.vector"),
            str(elasticsearch_home.SOURCES / "Launcher.java"),
            str(self.directory),
            *(f"{key}={value}" for key, value in settings.items()),
        ]
        with self._log.open("ab") as log:
            # In a session of its own, so that Ctrl-C in the terminal does not end it before us.
            self._process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, start_new_session=True)
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when it answers, knows a master and, being alone, has every index it had.

        Raises:
            RuntimeError: it ended, or did not get so far in three minutes.
        """
        status = "&wait_for_status=yellow" if "discovery.seed_hosts" not in self._settings else ""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            assert self._process is not None, "it does not run"
            if self._process.poll() is not None:
                self.kill()
                raise RuntimeError(f"Elasticsearch {self.version} ended at its start:\n{self._end_of_log()}")
            with suppress(OSError, urllib.error.HTTPError):
                health = get_json(f"{self.url}/_cluster/health?timeout=5s{status}")
                # Another program may have taken the port.
                if health["cluster_name"] == self._settings["cluster.name"] and not health["timed_out"]:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"Elasticsearch {self.version} is not ready:\n{self._end_of_log()}")

    def stop(self) -> None:
        """Stop it as an administrator does; its data remains."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(b"stop\n")
                process.stdin.flush()
        try:
            process.wait(STOP_TIMEOUT if process.stdin is not None else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close(process)

    def kill(self) -> None:
        """End it at once, as when the machine is switched off; its data remains as it is."""
        assert self._process is not None, "it does not run"
        process, self._process = self._process, None
        process.send_signal(signal.SIGKILL)
        process.wait()
        _close(process)

    def leave(self) -> None:
        """Let it run without this object, which would complain of that at the end of this process."""
        assert self._process is not None, "it does not run"
        self._process.returncode = 0
        self._process = None

    def remove_data(self) -> None:
        """Remove its data and logs, once it has ended."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.directory / "logs" / "output.log"

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()


class Cluster:
    """Several nodes that are one cluster.

    Attributes:
        nodes: in the order of their names.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)

    @property
    def urls(self) -> list[str]:
        """Where the nodes answer."""
        return [node.url for node in self.nodes]

    def wait_for(self, *, status: str = "green", nodes: int | None = None) -> None:
        """Return when the cluster has ``nodes`` nodes, all by default, and at least this status.

        Raises:
            TimeoutError: it has not within two minutes.
        """
        query = f"wait_for_status={status}&wait_for_nodes={nodes or len(self.nodes)}&timeout=5s"
        deadline = time.monotonic() + 120
        health: dict[str, Any] = {}
        while time.monotonic() < deadline:
            for node in self.nodes:
                with suppress(OSError, urllib.error.HTTPError):
                    health = get_json(f"{node.url}/_cluster/health?{query}")
                    if not health["timed_out"]:
                        return
            time.sleep(0.1)
        raise TimeoutError(f"the cluster is not {status} with {nodes or len(self.nodes)} nodes: {health}")


@contextmanager
def own_node(**options: Any) -> Iterator[Node]:
    """Start a node that nobody else uses, and end it with this block or this process.

    Args:
        **options: for :class:`Node`.
    """
    node = Node(new_directory(), **options)
    try:
        start_somewhere(node)
        yield node
    finally:
        node.stop()
        node.remove_data()


@contextmanager
def cluster(count: int = 3, *, version: str | None = None, heap: str = "700m") -> Iterator[Cluster]:
    """Start ``count`` nodes as one cluster, and end them with this block or this process."""
    names = [f"node-{number}" for number in range(1, count + 1)]
    nodes = [Node(new_directory(), version=version, name=name, heap=heap) for name in names]
    for node in nodes:
        node._settings.update(
            {
                "cluster.name": nodes[0]._settings["cluster.name"],
                "discovery.seed_hosts": ",".join(f"127.0.0.1:{other.transport_port}" for other in nodes),
                "cluster.initial_master_nodes": ",".join(names),
            }
        )
    made = Cluster(nodes)
    try:
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.wait_until_ready()
        made.wait_for()
        yield made
    finally:
        for node in nodes:
            node.stop()
            node.remove_data()


def new_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="sqla-vector-es-"))


def start_somewhere(node: Node, stdin: int = subprocess.PIPE) -> None:
    """Start a node, on other ports should somebody have taken those."""
    try:
        node.start(stdin=stdin)
    except RuntimeError as error:
        if "BindTransportException" not in str(error) and "BindHttpException" not in str(error):
            raise
        node.http_port, node.transport_port = free_ports(2)
        node.start(stdin=stdin)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface on which nothing listens.

    They lie below those that the operating system hands out, so that they remain free while a node is down.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def get_json(url: str) -> Any:
    """Return what a GET of ``url`` answers."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)
