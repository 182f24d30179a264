"""The engine process: `python -m octavo.engine.worker SOCKET PULSE`, the second a descriptor of shared memory.

Connects to the client's Unix socket, takes the config as its first frame, loads, says `Ready`, then runs the loop.
What goes wrong on the way is sent as `Fatal`, so that the last line the operator sees is the cause. Ends when the
client is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator

_STARTED = time.monotonic()

from octavo.core import log  # noqa: E402  # the clock starts before the imports that it times
from octavo.core.errors import ErrorInfo, OctavoError  # noqa: E402
from octavo.engine import free_memory  # noqa: E402
from octavo.engine.ipc import Fatal, FrameBuffer, StartEngine, decode_to_engine  # noqa: E402
from octavo.engine.link import SocketLink  # noqa: E402
from octavo.engine.page import Page  # noqa: E402
from octavo.engine.pulse import Pulse  # noqa: E402

logger = log.get_logger(__name__)


def main(argv: list[str]) -> int:
    """Entry point of the process."""
    # Ctrl-C, and service managers that signal a whole group, mean the client: it drains, then says Shutdown.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    log.configure()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(argv[0])
    link = SocketLink(sock)
    # Modules make a million objects that all stay; looking for garbage among them took a tenth of the time to import.
    gc.disable()
    is_up = False
    try:
        # lazy: only modules that are needed below, too; torch is not among them
        from octavo.engine import asleep, early

        begun = None
        told = _foretold()
        if told is not None and early.is_on_cpu(told.config):
            begun = early.begin(told.config)
            if (
                told.config.load_format != "dummy"
            ):  # draws by torch.Generator, which wants all of torch
                asleep.let_sleep()
        # lazy: loads torch, while the client still loads its own libraries
        from octavo.engine.boot import boot

        start = _read_start(sock)
        if begun is not None and begun.config != start.config:
            begun = None
        log.configure(style=start.config.log_format)
        pulse = Pulse(Page(int(argv[1])))
        with pulse.beating():
            engine = boot(
                start.config,
                link,
                asked_at=start.asked_at,
                process_at=_STARTED,
                pulse=pulse,
                early=begun,
            )
            del begun
            is_up = True
            with calm_collector():
                engine.serve()
    except ConnectionError:
        return 0
    except OctavoError as error:
        link.send(Fatal(error.info()))
    except Exception as error:  # edge of the process: the cause goes to the client before it ends
        no_memory = None if is_up else free_memory.refused(error)
        if no_memory is None:
            logger.exception("the engine stops")
        link.send(Fatal(_crash(error) if no_memory is None else no_memory.info()))
    else:
        link.flush()
        return 0
    link.flush()
    return 1


@contextlib.contextmanager
def calm_collector() -> Iterator[None]:
    """Keep the garbage collector from stopping a step: what is loaded is set apart from what it walks over.

    A step makes some objects per running sequence, none in cycles; with Python's own limits a young collection comes
    several times a step and an old one, milliseconds over everything that torch has loaded, every few dozen.
    """
    gc.freeze()
    gc.enable()
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()  # so that the interpreter's end finds everything


def _crash(error: Exception) -> ErrorInfo:
    return ErrorInfo(
        code="E-ENGINE-01",
        message=f"the engine stopped: {type(error).__name__}: {error}",
        status=500,
        fix="The traceback is above; this is a defect worth reporting.",
    )


def _foretold() -> StartEngine | None:
    """What the client will say first, from standard input; None if it does not know yet."""
    for body in FrameBuffer().feed(sys.stdin.buffer.read()):
        message = decode_to_engine(body)
        return message if isinstance(message, StartEngine) else None
    return None


def _read_start(sock: socket.socket) -> StartEngine:
    """The client's first frame. It sends no other before the engine is ready."""
    buffer = FrameBuffer()
    while True:
        select.select([sock], [], [])
        data = sock.recv(1 << 16)
        if not data:
            raise SystemExit("the client closed the connection before saying what to start")
        for body in buffer.feed(data):
            message = decode_to_engine(body)
            if not isinstance(message, StartEngine):
                raise SystemExit("the client's first frame does not say what to start")
            return message


def _die_with_parent() -> None:
    """Linux: be killed when the parent dies, also while loading. Elsewhere the closed socket does it later."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
