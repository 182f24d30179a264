"""The compiled kernels under address and undefined behaviour sanitizers, on shapes that end where memory ends.

Builds csrc/cpu without its Python face, and the cases of tests/native, with the flags that CMakeLists.txt gives each
instruction set. A new kernel file is picked up by itself; its cases go into a file of tests/native.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "csrc" / "cpu"
CASES = ROOT / "tests" / "native"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
REPORT = re.compile("ERROR: AddressSanitizer: (heap-buffer-overflow|unknown-crash|SEGV)")
"""What it says of a buffer's end, of an access across it, and of one behind it that it does not look at."""
BROKEN = (
    "gemm 7 65 33 float32",
    "gemm 193 17 512 bfloat16",
    "qgemm 7 65 33 int8",
    "qgemm 13 31 65 int4 64 zeros",
    "sample 5 65",
    "attention dim 128 int8",
    "rms_norm 5 17",
    "rms_norm residual 1 7",
    "silu_and_mul 5 33",
    "attention_inputs 5 20",
    "attention dim 7 float32",
    "attention dim 80 bfloat16",
    "attention dim 20 float16",
    "attention dim 20 over bfloat16",
    "attention_inputs 7 128 int8",
    "gemm rows 7 65 33 float32 as bfloat16",
    "gemm rows 7 65 33 bfloat16 as bfloat16",
    "qgemm 1 65 129 int8",
    "qgemm 1 143 255 int4 128",
    "qgemm pack 7 65 33 int4 32",
    "qgemm pack wide 7 65 33 int8",
    "qgemm pack 13 31 65 taken 32 float16",
)
"""One case of each kind, run with an input one element short: the sanitizer must see it."""


def compiler() -> str:
    """A C++ compiler that has the sanitizers."""
    names = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    program = "#include <cstdlib>\nint main() { std::free(std::malloc(1)); }\n"
    for name in names:
        command = [name, *SANITIZE, "-x", "c++", "-", "-o", os.devnull]
        if subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0:
            return name
    pytest.skip(f"no C++ compiler with address sanitizer; of {names or 'none'} none links with it")


def isa_flags() -> tuple[dict[str, list[str]], list[str]]:
    """Instruction set -> compiler flags, and what says that its kernels are there: as CMakeLists.txt has them."""
    if os.uname().machine not in ("x86_64", "AMD64"):
        return {}, []
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.findall(r"set\(OCTAVO_(\w+)_FLAGS (-[^)]+)\)", text)
    assert found, "CMakeLists.txt sets OCTAVO_<ISA>_FLAGS"
    definitions = sorted(set(re.findall(r"OCTAVO_HAVE_\w+", text)))
    return {name.lower(): flags.split() for name, flags in found}, [f"-D{d}" for d in definitions]


def isa_of(path: Path, known: Iterable[str]) -> str:
    """The instruction set that a file is for; empty for the baseline."""
    ends = (name for name in known if path.stem.endswith(f"_{name}"))
    return max(ends, key=len, default="")


def build_cases(folder: Path, command: str, shared: Iterable[str], *, is_emulated: bool) -> Path:
    """Compile kernels and cases; with AVX-512 as plain code if `is_emulated`."""
    by_isa, definitions = isa_flags()
    if is_emulated:
        emulated = [*by_isa["avx2"], "-include", str(CASES / "emulate_avx512.h")]
        by_isa.update({isa: emulated for isa in by_isa if isa.startswith("avx512")})
        definitions.append("-DOCTAVO_EMULATED_AVX512")
    sources = [
        path
        for path in sorted((*SOURCES.glob("*.cpp"), *CASES.glob("*.cpp")))
        if not path.name.startswith("bind") and (by_isa or "_avx" not in path.stem)
    ]

    def build(path: Path) -> Path:
        out = folder / f"{path.parent.name}_{path.stem}.o"
        flags = [
            *FLAGS,
            *shared,
            *definitions,
            *by_isa.get(isa_of(path, by_isa), []),
            f"-I{SOURCES}",
            f"-I{CASES}",
        ]
        subprocess.run([command, *flags, "-c", path, "-o", out], check=True)
        return out

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(build, sources))
    subprocess.run([command, *shared, "-pthread", *objects, "-o", folder / "cases"], check=True)
    return folder / "cases"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, built under the sanitizers."""
    return build_cases(tmp_path_factory.mktemp("native"), compiler(), SANITIZE, is_emulated=False)


def run(driver: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The pool's threads outlive main by design; that is no leak worth a report.
    variables = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [driver, *arguments], capture_output=True, text=True, env=variables, check=False
    )


def test_kernels_stay_inside_their_memory(driver: Path) -> None:
    done = run(driver)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"\d{4} cases scalar", done.stdout), done.stdout


@pytest.mark.parametrize("name", BROKEN)
def test_the_sanitizer_sees_one_element_too_far(driver: Path, name: str) -> None:
    done = run(driver, "--break", name)
    assert done.returncode not in (0, 2), done.stdout
    assert REPORT.search(done.stderr), done.stderr


def test_avx512_kernels_give_the_same_bytes_emulated(tmp_path: Path) -> None:
    """Runs them on any machine with AVX2; what is not shown is the machine's own arithmetic."""
    if not Path("/usr/include/simde/x86/avx512.h").is_file():
        pytest.skip("needs the SIMDe headers, package libsimde-dev")
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs AVX2")
    done = run(build_cases(tmp_path, compiler(), ("-O2",), is_emulated=True))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "avx512_bf16", done.stdout
