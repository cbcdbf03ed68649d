"""The program of an Elasticsearch node: its jars from Maven Central, and a JDK that runs them.

A home is laid out once per version in the user's cache directory and shared by all runs. It has what the tests
need and what is published as jars: the server and its HTTP transport, without scripts (painless), language
analyzers, reindex and what needs a licence.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).with_name("elasticsearch_node")
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
TRANSPORT = ("netty", "transport-netty4")

DESCRIPTOR = """\
description=The HTTP and transport layers over Netty
version={version}
elasticsearch.version={version}
name=transport-netty4
classname=org.elasticsearch.transport.netty4.Netty4Plugin
java.version=17
has.native.controller=false
"""


def why_unavailable(version: str) -> str | None:
    """Return what is missing to run a node of ``version``, or None when nothing is."""
    if _find_jdk(version) is None:
        return f"a JDK {_least_jdk(version)} or newer"
    if not home_directory(version).exists() and shutil.which("mvn") is None:
        return "Maven (mvn)"
    return None


def java(version: str) -> Path:
    """Return the ``java`` that runs a node of ``version``."""
    jdk = _find_jdk(version)
    if jdk is None:
        raise RuntimeError(f"no JDK {_least_jdk(version)} or newer")
    return jdk / "bin" / "java"


def home_directory(version: str) -> Path:
    """Return where the home of ``version`` is, or would be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sqla-vector" / "elasticsearch" / version


def make_home(version: str) -> Path:
    """Return the home of ``version``, fetched and laid out first where it is not there.

    Several processes may do this at once, and be killed at it: one works, in a directory that is renamed when
    everything is in it.

    Raises:
        RuntimeError: Maven failed; the message has the end of its output.
    """
    home = home_directory(version)
    home.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(home.parent / f"{version}.lock"):
        if home.exists():
            return home
        with tempfile.TemporaryDirectory(prefix=f"{version}-", dir=home.parent) as scratch:
            jars = Path(scratch) / "jars"
            _fetch(version, jars)
            new = Path(scratch) / "home"
            _lay_out(version, jars, new)
            new.rename(home)
    return home


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same ``path``; one that is killed counts as out."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(version: str, jars: Path) -> None:
    command = ["mvn", "--batch-mode", "--quiet", "-f", str(SOURCES / "pom.xml"), COPY]
    command += [f"-Delasticsearch.version={version}", f"-DoutputDirectory={jars}"]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"Maven did not fetch Elasticsearch {version}:\n{done.stdout[-2000:]}")


def _lay_out(version: str, jars: Path, home: Path) -> None:
    server, transport = home / "server", home / "modules" / "transport-netty4"
    for directory in (server, transport, home / "config", home / "plugins"):
        directory.mkdir(parents=True)
    for jar in jars.iterdir():
        jar.rename((transport if jar.name.startswith(TRANSPORT) else server) / jar.name)
    (transport / "plugin-descriptor.properties").write_text(DESCRIPTOR.format(version=version))


def _least_jdk(version: str) -> int:
    return 21 if int(version.split(".")[0]) >= 9 else 17


def _find_jdk(version: str) -> Path | None:
    command = [str(ROOT / "tools" / "find_jdk"), str(_least_jdk(version))]
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else None
