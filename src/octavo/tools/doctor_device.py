"""The GPU checks of `octavo doctor`: the driver's own view beside torch's. Rules are pure; two functions look.

Where a start on the GPU would be refused, the code of that refusal is told (`kernels/gpu_facts.py`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from octavo.kernels.gpu_facts import LEAST_CAPABILITY
from octavo.tools import gpu
from octavo.tools.gpu import Gpu

Finding = tuple[str, Literal["ok", "warn", "fail"], str, str]
BUSY_SHARE = 0.1


class TorchCuda(NamedTuple):
    """What torch knows of CUDA."""

    built_for: str | None
    """CUDA version of the build; None: it has none."""
    is_available: bool
    reason: str = ""
    """Why it cannot be used, if torch said so."""


def look() -> list[Finding]:
    """Driver and device."""
    return judge(gpu.query(), _torch_cuda())


def _torch_cuda() -> TorchCuda | None:
    try:
        import torch  # lazy: seconds, and only this check needs it
    except (ImportError, OSError):
        return None
    if torch.version.cuda is None:
        return TorchCuda(None, False)
    if torch.cuda.is_available():
        return TorchCuda(torch.version.cuda, True)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return TorchCuda(torch.version.cuda, False, " ".join(str(error).split())[:200])
    return TorchCuda(torch.version.cuda, False)


def judge(found: tuple[Gpu, ...] | str, cuda: TorchCuda | None) -> list[Finding]:
    """What is wrong between driver, device and torch."""
    if isinstance(found, str):
        return [_no_driver(found, cuda)]
    if not found:
        fix = "Pass the device into the container (docker run --gpus all), or serve with --device cpu (E-GPU-04)."
        return [("driver", "warn", "it sees no device", fix)]
    findings: list[Finding] = [("driver", "ok", f"{found[0].driver}, {len(found)} device(s)", "")]
    findings += [_device(index, each) for index, each in enumerate(found)]
    if cuda is not None:
        findings.append(_torch(found[0], cuda))
    return findings


def _no_driver(reason: str, cuda: TorchCuda | None) -> Finding:
    if cuda is not None and cuda.is_available:
        return ("driver", "ok", f"{reason}; torch sees the device all the same", "")
    if reason.endswith("is not installed"):
        return ("device", "ok", f"cpu: {reason}", "")
    fix = "Load or reinstall the driver (`sudo modprobe nvidia`; after an update reboot), or serve with --device cpu "
    fix += "(E-GPU-02, E-GPU-07)."
    return ("driver", "fail", reason, fix)


def _device(index: int, found: Gpu) -> Finding:
    name = f"device {index}"
    used = f"{found.used_mib} of {found.total_mib} MiB in use"
    detail = f"{found.name}, compute capability {found.compute_capability}, {used}"
    try:
        capability = tuple(map(int, found.compute_capability.split(".")))
    except ValueError:
        capability = LEAST_CAPABILITY
    if capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        fix = f"The kernels need compute capability {least}: take a GPU of the Ampere generation or later, or serve with "
        fix += "--device cpu (E-GPU-05)."
        return (name, "warn", detail, fix)
    if found.used_mib > BUSY_SHARE * found.total_mib:
        fix = "End what uses it (`nvidia-smi` lists it); `octavo serve` plans with what is free."
        return (name, "warn", detail, fix)
    return (name, "ok", detail, "")


def _torch(found: Gpu, cuda: TorchCuda) -> Finding:
    if cuda.is_available:
        return ("torch and CUDA", "ok", f"built for CUDA {cuda.built_for}", "")
    if cuda.built_for is None:
        fix = "Install a CUDA build of torch, or serve with --device cpu (E-GPU-01)."
        return ("torch and CUDA", "fail", f"torch has no CUDA; the machine has {found.name}", fix)
    reason = cuda.reason or "torch sees no device"
    fix = (
        f"Update the driver ({found.driver}) to one for CUDA {cuda.built_for}, or install a torch built for the driver's; "
        "look at CUDA_VISIBLE_DEVICES, too (E-GPU-03, E-GPU-04)."
    )
    return ("torch and CUDA", "fail", reason, fix)
