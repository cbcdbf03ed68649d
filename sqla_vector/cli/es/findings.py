"""What ``sqla-vector doctor`` finds of Elasticsearch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import elasticsearch

from sqla_vector.cli.application import Application
from sqla_vector.cli.diagnosis import Finding
from sqla_vector.cli.es.server import Server
from sqla_vector.cli.es.status import IndexState, look
from sqla_vector.elasticsearch import SearchIndex
from sqla_vector.elasticsearch.errors import translated
from sqla_vector.exc import SearchError, SearchUnavailable, VectorError

__all__ = ["findings", "version_finding"]

_SUBJECT: Final = "elasticsearch"
_OLDEST: Final = (8, 19)


def findings(application: Application, server: Server) -> Iterator[Finding]:
    """Yield what is found of the server and of each index.

    Args:
        application: with indexes.
        server: where they are.
    """
    try:
        with translated(application.indexes[0].name):
            nodes = server.blocking.nodes.info(metric="http", filter_path="nodes.*.version")["nodes"]
            yield version_finding(min((str(node["version"]) for node in nodes.values()), key=_numbers))
    except SearchUnavailable as error:
        yield Finding("fail", _SUBJECT, str(error))
        return
    except SearchError:
        yield Finding(
            "warn", _SUBJECT, "answers, and does not tell its version: that takes the cluster privilege monitor"
        )
    for index in application.indexes:
        yield from _index(application, server, index)


def version_finding(version: str) -> Finding:
    """Return whether the client goes with a server.

    Args:
        version: the server's, such as ``9.2.0``.
    """
    found = _numbers(version)
    client = ".".join(map(str, elasticsearch.__version__[:3]))
    if found[:2] < _OLDEST:
        return Finding("fail", _SUBJECT, f"is version {version}, and {'.'.join(map(str, _OLDEST))} is needed at least")
    if elasticsearch.__version__[0] > found[0]:
        return Finding(
            "fail",
            _SUBJECT,
            f"is version {version}, and the client {client}, which is for servers from {elasticsearch.__version__[0]} "
            f"on; pip install 'elasticsearch<{found[0] + 1}'",
        )
    return Finding("ok", _SUBJECT, f"version {version}, client {client}; nothing that is used takes a licence")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


def _index(application: Application, server: Server, index: SearchIndex) -> Iterator[Finding]:
    subject = f"index {index.name}"
    try:
        found = look(application, server, index)
        blocks = _blocks(server, found) if found.physical else []
    except VectorError as error:
        yield Finding("fail", subject, str(error))
        return
    if not found.physical:
        yield Finding("fail", subject, f"is not there; sqla-vector es create {index.name} makes it")
        return
    yield Finding("ok", subject, f"is {', '.join(found.physical)}, with {found.documents:,} documents")
    for words in found.mapping_drift:
        yield Finding("fail", subject, f"{words}; sqla-vector es rebuild {index.name} makes it as declared")
    for words in found.settings_drift:
        yield Finding("warn", subject, f"{words}; change it there, or sqla-vector es rebuild {index.name}")
    for block in blocks:
        yield Finding(
            "fail",
            subject,
            f"takes no writes ({block}): the disk of a node was too full; the block goes by itself when there is room",
        )
    if found.queue.dead:
        yield Finding(
            "warn",
            subject,
            f"{found.queue.dead:,} entries are dead; sqla-vector dead list --index {index.name} says why",
        )
    if found.rebuild:
        yield Finding("ok", subject, f"is being rebuilt, as {', '.join(found.rebuild)}")


def _blocks(server: Server, found: IndexState) -> list[str]:
    """Return what keeps an index from being written."""
    with translated(found.index):
        answer: Any = server.blocking.indices.get_settings(index=found.index, name="index.blocks.*", flat_settings=True)
    return sorted({name for one in answer.values() for name, value in one["settings"].items() if value == "true"})
