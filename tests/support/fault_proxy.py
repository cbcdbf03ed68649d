"""An HTTP proxy that makes faults between a client of Elasticsearch and a real node.

Each bulk request that arrives meets the next fault of a list; other requests, and all once the list is used up, are
passed on. The sockets are real, and so is what the client sees: a reset connection, a body that ends early, an answer
that never comes. What a fault does to the server is part of its definition, so that a test knows what was stored::

    with FaultProxy(node.url, [Items(429, {0}), Reset(forwarded=True), Twice()]) as proxy:
        with Elasticsearch(proxy.url) as client: ...

A client must be told not to try again by itself (``max_retries=0``), or it takes faults that the adapter should see.
aiohttp does so all the same when a connection that it kept open is reset.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
import select
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.faults import Answer, Fault, Items, Late, Passed, Reset, Truncated, Twice

BULK = r"/_bulk\b"

# What the server says of an item that it refuses. The reason of the 409 is one that gives no version.
ERRORS = {
    400: ("document_parsing_exception", "failed to parse"),
    403: ("cluster_block_exception", "blocked by: [FORBIDDEN/8/index write (api)];"),
    409: ("version_conflict_engine_exception", "version conflict, required seqNo [1], primary term [1]"),
    429: ("es_rejected_execution_exception", "rejected execution of primary operation"),
    503: ("unavailable_shards_exception", "primary shard is not active"),
}


@dataclass(frozen=True)
class Request:
    """A request as it came, with its body uncompressed."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """What the server answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Delivery:
    """What became of a request that met a fault.

    Attributes:
        fault: which.
        items: the operation and id of each item of a bulk request.
        refused: those of them that were refused in place of the server.
        times: how often it was carried out.
    """

    fault: Fault
    items: list[tuple[str, str]]
    refused: list[tuple[str, str]] = field(default_factory=list)
    times: int = 0


class FaultProxy:
    """A proxy on the loopback interface, in threads of this process.

    Args:
        upstream: the node's URL.
        faults: one for each request that matches.
        matching: a regular expression found in the paths of the requests that meet faults.

    Attributes:
        url: where the proxy answers.
        deliveries: of the requests that met faults, in their order.
    """

    def __init__(self, upstream: str, faults: Iterable[Fault] = (), *, matching: str = BULK) -> None:
        self.upstream = urlsplit(upstream)
        self.deliveries: list[Delivery] = []
        self._matching = re.compile(matching)
        self._faults = list(faults)
        self._held: list[tuple[Request, Delivery, int | None]] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Carry out what is late, and end; further calls do nothing."""
        if self.closing.is_set():
            return
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()
        self.deliver_late()

    @property
    def remaining(self) -> int:
        """How many faults are still to come."""
        return len(self._faults)

    def add(self, *faults: Fault) -> None:
        """Append faults to the list."""
        with self._lock:
            self._faults.extend(faults)

    def deliver_late(self) -> int:
        """Carry out the requests that were held back, in their order, and return how many there were."""
        with self._lock:
            held, self._held = self._held, []
        for request, delivery, _ in held:
            self._forward_late(request, delivery)
        return len(held)

    # What the threads of the connections call.

    def next_fault(self, request: Request) -> Delivery | None:
        if not self._matching.search(request.path):
            return None
        with self._lock:
            fault = self._faults.pop(0) if self._faults else Passed()
            delivery = Delivery(fault, [(operation, id_) for operation, id_, _ in parse_bulk(request.body)])
            self.deliveries.append(delivery)
        return delivery

    def hold(self, request: Request, delivery: Delivery, after: int | None) -> None:
        with self._lock:
            self._held.append((request, delivery, after))

    def answered(self) -> None:
        """Count an answer, and carry out the late requests whose turn it is."""
        with self._lock:
            due = [(request, delivery) for request, delivery, after in self._held if after is not None and after <= 1]
            self._held = [
                (request, delivery, after if after is None else after - 1)
                for request, delivery, after in self._held
                if after is None or after > 1
            ]
        for request, delivery in due:
            self._forward_late(request, delivery)

    def _forward_late(self, request: Request, delivery: Delivery) -> None:
        # The node may be gone; nobody waits for the answer.
        with suppress(OSError, http.client.HTTPException):
            self.forward(request, delivery)

    def forward(self, request: Request, delivery: Delivery | None = None) -> Response:
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=120)
        try:
            connection.request(request.method, request.path, request.body or None, request.headers)
            answer = connection.getresponse()
            response = Response(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()
        if delivery is not None:
            delivery.times += 1
        return response


def parse_bulk(body: bytes) -> list[tuple[str, str, list[bytes]]]:
    """Return operation, id and lines of each item of a bulk request."""
    items: list[tuple[str, str, list[bytes]]] = []
    lines = iter(line for line in body.split(b"\n") if line.strip())
    for line in lines:
        try:
            ((operation, metadata),) = json.loads(line).items()
        except (ValueError, AttributeError):
            return []
        items.append((operation, str(metadata.get("_id")), [line] if operation == "delete" else [line, next(lines)]))
    return items


def refuse_items(proxy: FaultProxy, request: Request, delivery: Delivery, fault: Items) -> Response:
    """Forward a bulk request without the refused items, and answer as if the server had refused them."""
    items = parse_bulk(request.body)
    kept = [lines for position, (_, _, lines) in enumerate(items) if position not in fault.positions]
    answered: dict[str, Any] = {"took": 0, "errors": False, "items": []}
    headers = [("X-Elastic-Product", "Elasticsearch"), ("Content-Type", _content_type(request))]
    if kept:
        body = b"".join(line + b"\n" for lines in kept for line in lines)
        response = proxy.forward(Request(request.method, request.path, request.headers, body), delivery)
        if response.status != 200:
            return response
        answered, headers = json.loads(response.body), response.headers
    real = iter(answered["items"])
    answered["items"] = []
    kind, reason = ERRORS[fault.status]
    for position, (operation, id_, lines) in enumerate(items):
        if position not in fault.positions:
            answered["items"].append(next(real))
            continue
        delivery.refused.append((operation, id_))
        index = json.loads(lines[0])[operation].get("_index") or request.path.split("/")[1]
        error = {"type": kind, "reason": f"[{id_}]: {reason}", "index": index}
        answered["items"].append({operation: {"_index": index, "_id": id_, "status": fault.status, "error": error}})
        answered["errors"] = True
    return Response(200, headers, json.dumps(answered).encode())


def _content_type(request: Request) -> str:
    accepted = {name.lower(): value for name, value in request.headers.items()}.get("accept", "")
    return accepted if "json" in accepted else "application/json"


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up, as the faults intend."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def handle_request(self) -> None:
        proxy, request = self.server.proxy, self._read()
        delivery = proxy.next_fault(request)
        fault = Passed() if delivery is None else delivery.fault
        response: Response | None = None
        truncated = False
        try:
            match fault:
                case Items() if delivery is not None:
                    response = refuse_items(proxy, request, delivery, fault)
                case Answer(status=status, forwarded=forwarded):
                    if forwarded:
                        proxy.forward(request, delivery)
                    response = _error(status)
                case Reset(forwarded=forwarded):
                    if forwarded:
                        proxy.forward(request, delivery)
                case Truncated():
                    response, truncated = proxy.forward(request, delivery), True
                case Late(after=after) if delivery is not None:
                    self._wait_for_hanging_up()
                    if after == 0:
                        proxy.forward(request, delivery)
                    else:
                        proxy.hold(request, delivery, after)
                case Twice(answer=chosen):
                    response = [proxy.forward(request, delivery) for _ in range(2)][chosen]
                case _:
                    response = proxy.forward(request, delivery)
        except (OSError, http.client.HTTPException):
            # The node is gone.
            response = _error(502)
        if response is None:
            self._reset()
        else:
            self._write(response, truncated=truncated)
        if not isinstance(fault, Late):
            proxy.answered()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def _read(self) -> Request:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return Request(self.command, self.path, headers, body)

    def _write(self, response: Response, *, truncated: bool) -> None:
        body = b"" if self.command == "HEAD" else response.body
        self.send_response_only(response.status)
        for name, value in response.headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = next((value for name, value in response.headers if name.lower() == "content-length"), None)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if truncated else body)
        if truncated:
            self.close_connection = True

    def _wait_for_hanging_up(self) -> None:
        while not self.server.proxy.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable:
                with suppress(OSError):
                    # The client sends nothing more before it has an answer.
                    if self.connection.recv(1, socket.MSG_PEEK):
                        continue
                return

    def _reset(self) -> None:
        # Closing with a linger time of zero sends RST in place of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


# Of this connection only, or changed on the way: bodies are forwarded uncompressed and whole.
_HOP_BY_HOP: Sequence[str] = (
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "host",
    "keep-alive",
    "transfer-encoding",
)


def _error(status: int) -> Response:
    reason = {429: "es_rejected_execution_exception", 502: "bad gateway", 503: "unavailable"}.get(status, "error")
    headers = [("X-Elastic-Product", "Elasticsearch"), ("Content-Type", "application/json")]
    return Response(
        status, headers, json.dumps({"error": {"type": reason, "reason": reason}, "status": status}).encode()
    )
