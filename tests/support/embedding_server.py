"""A server that speaks the embeddings protocols of OpenAI and Ollama, Cohere's of reranking, and misbehaves as told.

It makes the vector of a text from the text's hash, so that a test can say which vector belongs to which text
(:func:`vector_of`). What goes wrong is given as a list of answers, used up one request after the other; afterwards
it answers properly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 4


def vector_of(text: str) -> NDArray[np.float32]:
    """Return the vector that the server makes of a text."""
    data = hashlib.sha256(text.encode()).digest()[: 2 * DIMENSIONS]
    return np.frombuffer(data, dtype="<u2").astype(np.float32) / 65536


def score_of(query: str, text: str) -> float:
    """Return how well the server finds that a text answers a query."""
    return float(vector_of(query) @ vector_of(text))


@dataclass
class Answer:
    """An answer out of the ordinary; what is not given is as usual.

    Attributes:
        status: the status code.
        headers: further headers.
        body: the bytes in place of JSON.
        change: is given the proper JSON and returns other JSON.
        cut: whether the connection is closed in the middle of the body.
        hang: whether nothing is answered until the server is closed.
        drip: whether the body comes byte by byte, without an end.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    change: Callable[[Any], Any] = lambda found: found
    cut: bool = False
    hang: bool = False
    drip: bool = False


@dataclass
class EmbeddingServer:
    """What a test sees of the server.

    Attributes:
        url: where it listens.
        answers: what goes wrong next.
        requests: the path, headers and JSON of each request, in order.
        knows_base64: whether it can write vectors in base64.
    """

    url: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    knows_base64: bool = True
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def batches(self) -> list[list[str]]:
        """The texts of each request."""
        return [body["input"] for _, _, body in self.requests]

    def proper(self, path: str, body: Any) -> Any:
        """Return what the protocol says."""
        if path.endswith("/rerank"):
            scored = [(score_of(body["query"], text), index) for index, text in enumerate(body["documents"])]
            return {
                "id": "1",
                "results": [
                    {"index": index, "relevance_score": score} for score, index in sorted(scored, reverse=True)
                ],
            }
        vectors = [vector_of(text) for text in body["input"]]
        if path == "/api/embed":
            return {"model": body["model"], "embeddings": [vector.tolist() for vector in vectors]}
        as_base64 = self.knows_base64 and body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(v.astype("<f4").tobytes()).decode() if as_base64 else v.tolist(),
            }
            for index, v in enumerate(vectors)
        ]
        # No server promises an order.
        return {"object": "list", "model": body["model"], "data": data[1::2] + data[0::2]}


@contextmanager
def running() -> Iterator[EmbeddingServer]:
    """Run a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, dict(self.headers), body))
            answer = state.answers.pop(0) if state.answers else Answer()
            if answer.hang:
                self.close_connection = True
                state.closing.wait(30)
                return
            content = answer.body
            if content is None:
                content = json.dumps(answer.change(state.proper(self.path, body))).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(10**9 if answer.drip else len(content)))
            self.end_headers()
            try:
                while answer.drip and not state.closing.wait(0.02):
                    self.wfile.write(b" ")
                self.wfile.write(content[: len(content) // 2] if answer.cut else content)
            except OSError:  # the client has had enough
                self.close_connection = True
            self.close_connection = self.close_connection or answer.cut or answer.drip

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the standard library
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = EmbeddingServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
