"""The nodes of the tests themselves: shared by a run's processes, ended with it, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from elasticsearch import Elasticsearch

from tests.support.elasticsearch import cluster, get_json, own_node

ROOT = Path(__file__).parents[2]

STARTER = """
import time
from tests.support.elasticsearch import own_node
with own_node(heap="700m") as node:
    print(node.pid, node.directory, flush=True)
    time.sleep(600)
"""

# A controller, and two processes that ask for the node at the same time.
CONTROLLER = """
import subprocess, sys, time
from tests.support.elasticsearch_server import Run
run = Run()
script = "import sys; from pathlib import Path; from tests.support.elasticsearch_server import shared_server\\n"
script += "with shared_server(Path(sys.argv[1])) as server: print(server.url, flush=True)"
workers = [
    subprocess.Popen([sys.executable, "-c", script, str(run.directory)], stdout=subprocess.PIPE, text=True)
    for _ in range(2)
]
urls = {worker.communicate()[0].strip() for worker in workers}
assert not any(worker.returncode for worker in workers)
print(*urls, flush=True)
print((run.directory / "node.json").read_text(), run.directory, sep="\\n", flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
run.close()
"""

pytestmark = pytest.mark.usefixtures("needs_own_node")


def is_alive(pid: int) -> bool:
    # Where process 1 reaps nothing, as in many containers, what has ended remains as a zombie.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pid: int, directory: Path) -> None:
    deadline = time.monotonic() + 60
    while (is_alive(pid) or directory.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(pid)
    assert not directory.exists()


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SQLA_VECTOR_TEST_ELASTICSEARCH_URL"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def test_a_node_ends_with_the_process_that_started_it_even_when_that_is_killed() -> None:
    with run(STARTER) as process:
        assert process.stdout is not None
        pid, directory = process.stdout.readline().split(maxsplit=1)
        assert is_alive(int(pid))
        process.kill()
    wait_until_gone(int(pid), Path(directory.strip()))


@pytest.mark.parametrize("end", ["killed", "ordinary"])
def test_the_processes_of_a_run_share_a_node_that_ends_with_the_run(end: str) -> None:
    with run(CONTROLLER, "wait" if end == "killed" else "close") as process:
        assert process.stdout is not None
        (url,) = process.stdout.readline().split()
        state = process.stdout.readline()
        directory = Path(process.stdout.readline().strip())
        pid = int(state.split('"pid": ')[1].rstrip("}\n"))
        assert url in state
        if end == "killed":
            # Both workers are gone by now, and the node is there.
            assert get_json(f"{url}/_cluster/health")["number_of_nodes"] == 1
            process.send_signal(signal.SIGKILL)
        else:
            assert process.wait() == 0
    wait_until_gone(pid, directory)


@pytest.mark.soak
def test_a_node_that_was_stopped_or_killed_has_what_it_acknowledged() -> None:
    with own_node(heap="700m") as node:
        with Elasticsearch(node.url, request_timeout=60) as client:
            client.indices.create(index="kept", settings={"number_of_replicas": 0})
            for number in range(50):
                client.index(index="kept", id=str(number), document={"n": number})
        node.kill()
        assert not is_listening(node.http_port)
        node.start()
        with Elasticsearch(node.url, request_timeout=60) as client:
            client.indices.refresh(index="kept")
            assert client.count(index="kept")["count"] == 50
            client.index(index="kept", id="50", document={"n": 50})
        node.stop()
        node.start()
        with Elasticsearch(node.url, request_timeout=60) as client:
            client.indices.refresh(index="kept")
            assert client.count(index="kept")["count"] == 51


@pytest.mark.soak
def test_a_cluster_of_three_goes_on_when_one_is_killed() -> None:
    with cluster(3) as nodes:
        with Elasticsearch(nodes.urls[0], request_timeout=60) as client:
            client.indices.create(
                index="kept", settings={"number_of_shards": 3, "number_of_replicas": 1}, wait_for_active_shards="all"
            )
            for number in range(50):
                client.index(index="kept", id=str(number), document={"n": number})
        nodes.nodes[0].kill()
        nodes.wait_for(status="yellow", nodes=2)
        with Elasticsearch(nodes.urls[1:], request_timeout=60) as client:
            client.indices.refresh(index="kept")
            assert client.count(index="kept")["count"] == 50
        nodes.nodes[0].start()
        nodes.wait_for()


def is_listening(port: int) -> bool:
    return any(
        connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
        for connection in psutil.net_connections("tcp")
    )
