"""Builds grammars beside the loop: a request waits for its own here, and no step waits for it.

The front end has proven that a source builds, in a process that could be killed; here it is built again, under the
backend's own limits. What goes wrong fails that request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from octavo.core.errors import EngineError, ErrorInfo, OctavoError
from octavo.core.log import get_logger
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished
from octavo.decoding.grammar.base import Grammar, GrammarBackend, Vocabulary
from octavo.decoding.grammar.registry import DEFAULT, GRAMMARS
from octavo.decoding.grammar.rows import GrammarRows

logger = get_logger(__name__)


class GrammarDesk:
    """Requests on their way to the scheduler. Owner: the engine."""

    def __init__(self, rows: GrammarRows, backend: str = DEFAULT) -> None:
        self._rows = rows
        self._name = backend
        self._backend: Future[GrammarBackend] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[str, tuple[Request, Future[Grammar]]] = {}
        self.on_built: Callable[[], None] = _nothing
        """Called in another thread when one is there, or has failed."""

    @property
    def is_busy(self) -> bool:
        """Whether requests wait for their grammar."""
        return bool(self._waiting)

    @property
    def num_waiting(self) -> int:
        """How many do."""
        return len(self._waiting)

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the vocabulary; the backend for it is made in the thread, once."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "octavo-grammars")
        make = GRAMMARS.load(self._name)
        self._rows.set_ends(vocabulary.eos_token_ids)

        def made() -> GrammarBackend:
            backend = make(vocabulary)
            backend.prepare()
            return backend

        self._backend = self._threads.submit(made)

    def add(self, request: Request) -> list[Event]:
        """Begin building a request's grammar. It ends no request, so [].

        Raises:
            EngineError: no vocabulary came before it.
        """
        backend = self._backend
        if backend is None or self._threads is None:
            raise EngineError("a request with a grammar came before the vocabulary.")
        job = self._threads.submit(lambda: backend.result().build(request.grammar))
        self._waiting[request.id] = (request, job)
        job.add_done_callback(lambda _: self.on_built())
        return []

    @property
    def waiting_ids(self) -> tuple[str, ...]:
        """Of the requests that wait."""
        return tuple(self._waiting)

    def cancel(self, request_id: str) -> Request | None:
        """Forget a request that waits, and return it; None when it does not."""
        found = self._waiting.pop(request_id, None)
        return None if found is None else found[0]

    def take(self) -> tuple[list[Request], list[Failed]]:
        """Requests whose grammar is there, and those that have none."""
        ready, failed = [], []
        for request, job in list(self._waiting.values()):
            if not job.done():
                continue
            del self._waiting[request.id]
            try:
                self._rows.learn(request, job.result())
                ready.append(request)
            except (
                Exception
            ) as error:  # edge of the task: whatever a grammar raises fails its request alone
                failed.append(Failed(id=request.id, error=_info(error)))
        return ready, failed

    def forget_ended(self, events: Sequence[Event]) -> None:
        """Drop the grammars of requests that these events end."""
        if self._backend is None:
            return
        for event in events:
            if isinstance(event, Finished | Failed):
                self._rows.forget(event.id)


def _nothing() -> None:
    pass


def _info(error: Exception) -> ErrorInfo:
    if isinstance(error, OctavoError):
        return error.info()
    logger.error("a grammar did not build", exc_info=error)
    return ErrorInfo(
        code="grammar_failed",
        message=f"the grammar of this request did not build: {type(error).__name__}: {error}",
        status=500,
    )
