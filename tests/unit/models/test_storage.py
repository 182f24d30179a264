"""How weights are kept, planned without loading a kernel, and as the dispatcher finds it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest

from octavo.core.assets import model_folder
from octavo.core.errors import ConfigError
from octavo.core.kvspec import DTYPE_BYTES
from octavo.kernels.cpu import extension
from octavo.kernels.gemm.format_table import FORMATS
from octavo.models.facts import read_facts
from octavo.models.load import choose_storage
from octavo.models.storage import plan_storage

CASES = list(itertools.product(DTYPE_BYTES, ("cpu", "cuda"), ("", *FORMATS)))


@pytest.fixture(params=["scalar", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    extension.limit_isa(request.param)
    yield request.param
    extension.limit_isa("avx512")


def test_the_plan_and_the_dispatcher_agree(isa: str) -> None:
    facts = read_facts(model_folder("octavo-mini"))
    compared = 0
    for case in CASES:
        try:
            found = choose_storage(facts, *case)
        except ConfigError:
            continue  # nothing computes it in this build; the plan says what it would take
        compared += 1
        assert plan_storage(facts, *case) == found, case
    assert compared >= 6 + sum(not form.rows for form in FORMATS.values())


def test_deciding_loads_no_torch() -> None:
    script = "import sys, octavo.engine.decide; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
