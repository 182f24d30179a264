"""Whether the GPU can be used, and if not, why and what to do: rules over what `device.look` found. No torch.

Asked before anything is loaded. What the driver says in a number is said here in words.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from octavo.core.errors import ConfigError, MemoryPlanError, OperatorError

LEAST_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
"""Of devices that convert float8_e4m3fn; Triton has no such type before it."""
"""Ampere: the first with bfloat16 in its matrix units, and the first that Triton supports in full."""
GIB = 1 << 30
MIB = 1 << 20
_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE (cuda.h)."""
_INIT_ERRORS = {
    2: "it is out of memory",
    3: "it is not initialised",
    46: "the device is busy or unavailable",
    101: "CUDA_VISIBLE_DEVICES names a device that is not there",
    802: "the system is not ready yet: the fabric manager of its NVSwitches does not run",
    803: "the driver's library and its kernel module are of different versions",
    804: "the compatibility package in front of the driver does not take this GPU",
    999: "an unknown error",
}


class Holder(NamedTuple):
    """A process with memory on the GPU."""

    pid: int
    name: str
    num_bytes: int

    def __str__(self) -> str:
        """For a message."""
        return f"process {self.pid} ({self.name}) with {self.num_bytes / GIB:.1f} GiB"


class GpuFacts(NamedTuple):
    """What there is, as far as one can look."""

    torch_version: str
    torch_cuda: str | None
    """The CUDA that torch was built with, "12.8"; None of a build without."""
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver knows; None without a driver."""
    init_error: int = 0
    """What the driver said to its first call; 0 is well."""
    num_devices: int = 0
    """That torch sees."""
    name: str = ""
    uuid: str = ""
    capability: tuple[int, int] = (0, 0)
    arch_list: tuple[str, ...] = ()
    """What torch has kernels for: "sm_90", "compute_120"."""
    total: int = 0
    """Bytes of the first device."""
    free: int = 0
    use_error: str = ""
    """Why it could not be used at all."""

    @property
    def held(self) -> int:
        """Bytes that are not free: of other processes, and of this one's context."""
        return self.total - self.free

    def __str__(self) -> str:
        """One line, for reports."""
        major, minor = self.capability
        return (
            f"{self.name} (compute {major}.{minor}, {self.total / GIB:.1f} GiB, {self.free / GIB:.1f} GiB free), "
            f"driver for CUDA {_dotted(self.driver_cuda)}, torch {self.torch_version} for CUDA {self.torch_cuda}"
        )


def problem(facts: GpuFacts) -> OperatorError | None:
    """Why the GPU cannot be used; None where it can."""
    if facts.torch_cuda is None:
        return ConfigError(
            f"--device cuda, but torch {facts.torch_version} was built without CUDA.",
            code="E-GPU-01",
            fix="Install a CUDA build of torch, or use --device cpu.",
        )
    if facts.driver_cuda is None:
        return ConfigError(
            "--device cuda, but there is no NVIDIA driver: libcuda.so.1 cannot be loaded.",
            code="E-GPU-02",
            fix="Install the driver; in a container, start it with the GPU (--gpus all). Or use --device cpu.",
        )
    if not facts.num_devices:
        return _unseen(facts, facts.torch_cuda, facts.driver_cuda)
    if facts.use_error:
        return ConfigError(
            f"the GPU cannot be used: {facts.use_error}",
            code="E-GPU-06",
            fix="See nvidia-smi: stop the processes that hold its memory, or set its compute mode to Default.",
        )
    return _unfit(facts)


def _unseen(facts: GpuFacts, built: str, driver: tuple[int, int]) -> ConfigError:
    """Why torch sees no device although there is a driver."""
    major = int(built.split(".", maxsplit=1)[0])
    if driver[0] < major:  # within a major version, older drivers serve newer builds
        return ConfigError(
            f"the NVIDIA driver is too old: it knows CUDA {_dotted(driver)}, and torch {facts.torch_version} was built "
            f"for CUDA {built}.",
            code="E-GPU-03",
            fix=f"Update the driver to one for CUDA {major}.0 or later, or install a torch built for CUDA {driver[0]}.",
        )
    if facts.init_error in (0, _NO_DEVICE):
        return ConfigError(
            "--device cuda, but the driver shows no GPU.",
            code="E-GPU-04",
            fix="See nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, start it with the GPU (--gpus all). Or use "
            "--device cpu.",
        )
    why = _INIT_ERRORS.get(facts.init_error, "see cuda.h")
    return ConfigError(
        f"the NVIDIA driver does not start: error {facts.init_error}, {why}.",
        code="E-GPU-07",
        fix="See nvidia-smi and the system's log; after an update of the driver, restart the machine.",
    )


def _unfit(facts: GpuFacts) -> ConfigError | None:
    major, minor = facts.capability
    least = ".".join(map(str, LEAST_CAPABILITY))
    if facts.capability < LEAST_CAPABILITY:
        return ConfigError(
            f"{facts.name} is too old: it has compute capability {major}.{minor}, and the kernels need {least}.",
            code="E-GPU-05",
            fix="Use a GPU of the Ampere generation (2020) or later, or --device cpu.",
        )
    if not _has_kernels(facts.capability, facts.arch_list):
        known = ", ".join(facts.arch_list)
        return ConfigError(
            f"torch {facts.torch_version} has no kernels for {facts.name} (compute capability {major}.{minor}); it has "
            f"{known}.",
            code="E-GPU-05",
            fix="Install a torch built for this generation of GPUs, or use --device cpu.",
        )
    return None


def _has_kernels(capability: tuple[int, int], arch_list: tuple[str, ...]) -> bool:
    """Machine code runs on later minors of its major, intermediate code on everything later."""
    for arch in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch)
        if match is None:
            continue
        kind, known = match[1], (int(match[2]), int(match[3]))
        if known <= capability and (kind == "compute" or known[0] == capability[0]):
            return True
    return False


def held_by_others(
    error: MemoryPlanError, facts: GpuFacts, holders: tuple[Holder, ...]
) -> MemoryPlanError:
    """The error with who else has the memory, where that is the cause."""
    if not holders:
        return error
    named = "; ".join(map(str, holders[:4]))
    return MemoryPlanError(
        f"{error.message} Others hold memory of the GPU: {named}.",
        code="E-MEM-05",
        fix=f"Stop them, which frees {sum(h.num_bytes for h in holders) / GIB:.1f} GiB. Or: {error.fix}",
    )


def parse_holders(text: str, uuid: str, own_pid: int) -> tuple[Holder, ...]:
    """From `HOLDERS_QUERY`, largest first: those on the GPU `uuid` ("" for any), less this process."""
    holders = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4 or not fields[1].isdigit() or not fields[3].isdigit():
            continue  # "[N/A]" where the driver does not tell
        if int(fields[1]) != own_pid and (not uuid or fields[0] == uuid):
            holders.append(Holder(int(fields[1]), fields[2], int(fields[3]) * MIB))
    return tuple(sorted(holders, key=lambda holder: -holder.num_bytes))


HOLDERS_QUERY = (
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
    "--format=csv,noheader,nounits",
)


def _dotted(version: tuple[int, int] | None) -> str:
    return "none" if version is None else f"{version[0]}.{version[1]}"
