"""What the engine asks of the device its tensors are on. The one file of the run-time that knows `torch.cuda`.

`Host` is the CPU, where tensors are written in place and nothing has to be waited for; `Cuda` is the first visible GPU.
Tests put a device of their own in their place.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch

from octavo.core.errors import OperatorError
from octavo.core.log import get_logger
from octavo.kernels.gpu_facts import HOLDERS_QUERY, GpuFacts, Holder, parse_holders, problem

_SMI_TIMEOUT_S = 5.0
logger = get_logger(__name__)


class Mark(Protocol):
    """A place in the order of what the device was told to do."""

    def synchronize(self) -> None:
        """Wait until the device has come so far."""


class Replayable(Protocol):
    """A computation that was captured."""

    def replay(self) -> None:
        """Do it again, on the same buffers."""


class Device(Protocol):
    """A device's memory, order and captured computations."""

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are."""
        ...

    def staging(self, num_bytes: int) -> torch.Tensor:
        """Host memory, uint8, that the device can read without the host's help."""
        ...

    def mark(self) -> Mark:
        """After all that it has been told so far."""
        ...

    def capture(self, compute: Callable[[], None]) -> Replayable:
        """Note what `compute` tells the device, without doing it. All captures share one pool of memory."""
        ...

    def allocated(self, *, peak: bool = False) -> int:
        """Bytes of tensors now, or at most since this was last asked with `peak`."""
        ...

    def held(self) -> int:
        """Bytes of the device that are not free: whoever holds them, and whatever they are."""
        ...

    def settle(self, most_bytes: int) -> None:
        """What is allocated and not in use goes back; from now on tensors take at most so much, or are refused."""
        ...

    def is_exceeded(self, error: BaseException) -> bool:
        """Whether an error says that there was no memory for a tensor."""
        ...


class _Done:
    """What a host has been told is done."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Host:
    """The CPU."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    def staging(self, num_bytes: int) -> torch.Tensor:
        """Plain memory."""
        return torch.empty(num_bytes, dtype=torch.uint8)

    def mark(self) -> Mark:
        """Everything is done when the call returns."""
        return _Done()

    def capture(self, compute: Callable[[], None]) -> Replayable:
        """There is nothing like it; `kernels/recording.py` records instead."""
        raise NotImplementedError("a host captures nothing")

    def allocated(self, *, peak: bool = False) -> int:
        """Not counted: a host's memory is what its pages are."""
        return 0

    def held(self) -> int:
        """Not counted."""
        return 0

    def settle(self, most_bytes: int) -> None:
        """The system has its own bounds."""

    def is_exceeded(self, error: BaseException) -> bool:
        """A host's memory ends otherwise."""
        return False


class Cuda:
    """The first visible GPU."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_per_process_memory_fraction(1.0)  # whatever an engine before this one had
        self._pool: Any = None
        self._side: torch.cuda.Stream | None = None

    def staging(self, num_bytes: int) -> torch.Tensor:
        """Pinned memory."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Mark:
        """An event on the current stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def capture(self, compute: Callable[[], None]) -> Replayable:
        """A CUDA graph.

        Without `torch.cuda.graph`, which waits for the device and empties the allocator: what runs goes on meanwhile.

        Raises:
            Exception: something in `compute` cannot be captured; the device is as before.
        """
        if self._side is None:
            self._begin_captures()
        graph = torch.cuda.CUDAGraph()
        # What the collector frees may ask the driver for something that must not be asked for during a capture.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.stream(self._side):
                # Other threads (staging, grammars) may call the driver meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    compute()
                except BaseException:
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()  # which says less of the cause
                    raise
                graph.capture_end()
        finally:
            if was_collecting:
                gc.enable()
        return graph

    def _begin_captures(self) -> None:
        """The stream that captures are made on, with the library's workspace for it, which would else be of the pool."""
        self._pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            one_11 = torch.ones(1, 1, device=self.torch_device, dtype=torch.bfloat16)
            torch.mm(one_11, one_11)
        side.synchronize()
        self._side = side

    def allocated(self, *, peak: bool = False) -> int:
        """Of torch's allocator: of live tensors, or their most since the last such question."""
        if not peak:
            return torch.cuda.memory_allocated()
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most

    def held(self) -> int:
        """As the driver counts."""
        free, total = torch.cuda.mem_get_info()
        return total - free

    def settle(self, most_bytes: int) -> None:
        """Torch's allocator keeps what it has had; beyond its bound it gives that back before it refuses."""
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / total))

    def is_exceeded(self, error: BaseException) -> bool:
        """Torch's own error for it."""
        return isinstance(error, torch.OutOfMemoryError)


def device_for(name: str) -> Device:
    """The device that a config's choice stands for: "cpu" or "cuda"."""
    return Cuda() if name == "cuda" else Host()


def choose(asked: str, facts: GpuFacts | None = None) -> tuple[str, str, GpuFacts | None]:
    """Where to run ("cpu" or "cuda"), why, and what is known of the GPU that is used. "auto" is the GPU where there is one.

    Raises:
        OperatorError: the GPU was asked for, or is there, and cannot be used.
    """
    if asked == "cpu":
        return asked, "as given", None
    facts = facts or look()
    wrong = problem(facts)
    if wrong is None:
        return "cuda", f"{facts.name}, {'as given' if asked == 'cuda' else 'what there is'}", facts
    # A GPU that is too old is no reason not to start; one that is fit and full is.
    if asked == "auto" and (not facts.num_devices or wrong.code == "E-GPU-05"):
        if facts.torch_cuda is not None and facts.driver_cuda is not None:
            logger.warning("%s %s", wrong.message, wrong.fix)
            return "cpu", f"no usable GPU: {wrong.message}", None
        return "cpu", "what there is", None
    raise wrong


def probe() -> tuple[GpuFacts, OperatorError | None]:
    """What there is, and why it cannot be used."""
    facts = look()
    return facts, problem(facts)


def look() -> GpuFacts:
    """Ask torch and the driver. Makes this process's context on the GPU where there is one (a second)."""
    version, built = torch.__version__, torch.version.cuda
    if built is None:
        return GpuFacts(version, None)
    driver, init_error = _ask_driver()
    facts = GpuFacts(version, built, driver, init_error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what `problem` says
        if driver is None or not torch.cuda.is_available():
            return facts
        properties = torch.cuda.get_device_properties(0)
        facts = facts._replace(
            num_devices=torch.cuda.device_count(),
            name=properties.name,
            uuid=f"GPU-{properties.uuid}",
            capability=(properties.major, properties.minor),
            arch_list=tuple(torch.cuda.get_arch_list()),
            total=properties.total_memory,
        )
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError as error:  # no room for a context, or another process has it to itself
            return facts._replace(use_error=str(error).splitlines()[0])
    return facts._replace(free=free, total=total)


def holders(facts: GpuFacts) -> tuple[Holder, ...]:
    """Other processes with memory on the GPU, as far as the driver tells; asked only to explain an error."""
    try:
        found = subprocess.run(
            HOLDERS_QUERY, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_holders(found.stdout, facts.uuid, os.getpid())


def _ask_driver() -> tuple[tuple[int, int] | None, int]:
    """The newest CUDA that the driver knows, None without a driver; and what it says to its first call."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, 0
    version = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return None, 0
    return (version.value // 1000, version.value % 1000 // 10), int(library.cuInit(0))
