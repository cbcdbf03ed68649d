"""The Elasticsearch that a command asks: the application's client, or one made of environment variables."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from sqla_vector.cli.application import Application, called, named
from sqla_vector.cli.failure import Failed
from sqla_vector.cli.running import Running, running
from sqla_vector.elasticsearch import SearchIndex

__all__ = ["CLIENT_VARIABLE", "ClientOption", "IndexesArgument", "Server", "chosen", "connected", "working"]

CLIENT_VARIABLE: Final = "SQLA_VECTOR_ELASTICSEARCH"
"""The environment variable that names the client."""
URL_VARIABLE: Final = "ELASTICSEARCH_URL"
KEY_VARIABLE: Final = "ELASTICSEARCH_API_KEY"

ClientOption = Annotated[
    str | None,
    typer.Option(
        "--elasticsearch",
        envvar=CLIENT_VARIABLE,
        metavar="MODULE:ATTRIBUTE",
        help=f"The client, or a function that returns it; by default {URL_VARIABLE} and {KEY_VARIABLE} say.",
    ),
]
IndexesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[INDEX]...", help="The indexes that are meant; by default all.")
]


@dataclass(frozen=True)
class Server:
    """Where the indexes are."""

    client: Any
    """``Elasticsearch``, or ``AsyncElasticsearch`` where the sessions are asynchronous."""
    blocking: Any
    """The same, of which each call is waited for."""


@contextmanager
def working(
    app: str | None, client: str | None, names: Sequence[str] | None, **options: Any
) -> Iterator[tuple[Running, Server, list[SearchIndex]]]:
    """Load the application and its client for a command, and close both at the end.

    Args:
        app: how the application is named.
        client: how the client is named.
        names: of indexes; none are all.
        **options: of :func:`~sqla_vector.cli.running.running`.
    """
    with running(app, **options) as command:
        indexes = chosen(command.application, names)
        with connected(command, client) as server:
            yield command, server, indexes


def chosen(application: Application, names: Sequence[str] | None) -> list[SearchIndex]:
    """Return the indexes of some names.

    Raises:
        Failed: there is none of a name, or none at all.
    """
    known = {index.name: index for index in application.indexes}
    if not known:
        _ = application.outbox  # says what is missing
        raise Failed(f"{application.name} has no index; declare one by SearchIndex(..., outbox=...) of its outbox")
    for name in names or ():
        if name not in known:
            raise Failed(f'there is no index "{name}"; there are: {", ".join(known)}')
    return [known[name] for name in dict.fromkeys(names or known)]


@contextmanager
def connected(command: Running, name: str | None) -> Iterator[Server]:
    """Yield the client, and close it at the end.

    Args:
        command: which needs it.
        name: how it is named, if it is.

    Raises:
        Failed: it cannot be had.
    """
    application = command.application
    client = _client(application, name)
    command.output.masking.add(_secrets(client))
    if application.is_async:
        try:
            yield Server(client, _Blocking(client, application.wait))
        finally:
            application.wait(client.close())
    else:
        with client:
            yield Server(client, client)


def _client(application: Application, name: str | None) -> Any:
    try:
        from elasticsearch import AsyncElasticsearch, Elasticsearch
    except ImportError:
        raise Failed("the indexes need Elasticsearch's client: pip install 'sqla-vector[elasticsearch]'") from None
    wanted: Any = AsyncElasticsearch if application.is_async else Elasticsearch
    if name is not None:
        found = named(name, "--elasticsearch", "myapp.search:client", "the client")
        if callable(found) and not isinstance(found, (AsyncElasticsearch, Elasticsearch)):
            found = called(found, name, wanted.__name__)
        if not isinstance(found, wanted):
            raise Failed(f"with these sessions {name} has to be {wanted.__name__}, got {type(found).__name__}")
        return found
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise Failed(
            f"no Elasticsearch was named; give --elasticsearch module:attribute, or set {URL_VARIABLE}, and "
            f"{KEY_VARIABLE} where it asks for one"
        )
    try:
        return wanted([one.strip() for one in url.split(",")], api_key=os.environ.get(KEY_VARIABLE) or None)
    except ValueError as error:
        raise Failed(f"{URL_VARIABLE} is no address such as https://search.example:9200: {error}") from None


def _secrets(client: Any) -> Iterator[str]:
    """Yield what the client shows to the server alone."""
    headers = [getattr(client, "_headers", {}), *(node.config.headers for node in client.transport.node_pool.all())]
    for one in headers:
        # Where it is asked for its items it hides them.
        kind, _, credentials = str((one or {}).get("authorization") or "").partition(" ")
        yield credentials
        if kind.lower() in ("basic", "apikey"):
            try:
                yield base64.b64decode(credentials, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                continue


class _Blocking:
    """An asynchronous client, each call of which is waited for."""

    def __init__(self, client: Any, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._client = client
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):  # one of the clients inside the client, such as indices
            return _Blocking(found, self._wait)
        return lambda *arguments, **options: self._wait(found(*arguments, **options))
