"""Tests of kernels for GPUs: on a card where there is one, in Triton's interpreter where that was asked for.

The interpreter must be asked for before triton is imported, and would change what other tests of the process choose, so
`tests/conformance/test_gpu_kernels.py` runs this folder in a process of its own where there is no card. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/gpu
"""

from __future__ import annotations

import torch

from octavo.kernels.triton.support import is_interpreting, missing

can_run = missing() is None and (is_interpreting() or torch.cuda.is_available())
collect_ignore_glob = [] if can_run else ["test_*.py"]
