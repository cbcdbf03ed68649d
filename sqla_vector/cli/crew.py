"""Several processes that work off one outbox, and the one that looks after them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final

from sqla_vector.cli.failure import ExitCode, Failed
from sqla_vector.tracking import Outcome

__all__ = ["is_member", "run_crew", "stopped_with_parent"]

logger = logging.getLogger("sqla_vector.cli")

_MEMBER: Final = "SQLA_VECTOR_CREW"
"""Set in the processes of a crew.  Their standard input ends when they are to stop, or when their parent is gone."""


def is_member() -> bool:
    """Tell whether this process is one of a crew."""
    return _MEMBER in os.environ


def run_crew(arguments: Sequence[str], number: int) -> Outcome:
    """Run a command in several processes until all of them end, and return what they did.

    When one of them fails the others finish what they have, so that whoever supervises this process starts all anew.

    Args:
        arguments: of ``sqla-vector``, with ``--json``.
        number: how many processes.

    Raises:
        Failed: a process failed.
    """
    crew = [_start(arguments) for _ in range(number)]
    ended: SimpleQueue[tuple[subprocess.Popen[str], str]] = SimpleQueue()

    def collect(member: subprocess.Popen[str]) -> None:
        assert member.stdout is not None
        said = member.stdout.read()
        member.wait()
        ended.put((member, said))

    total, code = Outcome(), 0
    with _signals(crew):
        for member in crew:
            threading.Thread(target=collect, args=(member,), daemon=True).start()
        for _ in crew:
            member, said = ended.get()
            if member.returncode in (-signal.SIGTERM, -signal.SIGINT):
                # As it was starting: later it leaves signals to this process, which has had the same one.
                _stop(crew)
            elif member.returncode != 0:
                code = code or member.returncode
                logger.warning("worker process %d ended with %d, so the others stop", member.pid, member.returncode)
                _stop(crew)
            else:
                total += Outcome(**json.loads(said))
    for member in crew:
        for stream in (member.stdin, member.stdout):
            if stream is not None:
                stream.close()
    if code:
        known = ExitCode(code) if code in (ExitCode.USAGE, ExitCode.UNREACHABLE) else ExitCode.FAILED
        raise Failed(f"a worker process ended with {code}", known)
    return total


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sqla_vector.cli.start", *arguments],
        env={**os.environ, _MEMBER: "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _stop(crew: Sequence[subprocess.Popen[str]]) -> None:
    for member in crew:
        if member.stdin is not None and not member.stdin.closed:
            member.stdin.close()


@contextmanager
def _signals(crew: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Stop the crew at the first signal, and all of it at once at the second."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            logger.info("the worker processes stop when their batches are finished")
            _stop(crew)
            return
        for member in crew:
            member.kill()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_with_parent(stop: Callable[[], Any]) -> None:
    """Call a function when the process that looks after this one says so, or is gone.

    Signals are left to that one: a terminal and a supervisor send theirs to all processes, and two of them mean
    something else than one.
    """

    def wait() -> None:
        sys.stdin.read()
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()
