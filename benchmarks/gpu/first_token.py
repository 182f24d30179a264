"""A process that starts an engine on random weights and says how long its first token took, from the process's start.

    python benchmarks/gpu/first_token.py FOLDER DEVICE

Random weights are made, not read: what a checkpoint adds is the phase "weights" of a start from files.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from octavo.tools.startup import process_age_s

if __name__ == "__main__":
    from ours import Ours

    ours = Ours(Path(sys.argv[1]), device=sys.argv[2], max_num_seqs=16, max_model_len=256)
    before = time.perf_counter()
    ours.run([(16, 1)])
    step_s = time.perf_counter() - before
    print(json.dumps({"first_token_s": process_age_s(), "step_s": step_s, "about": ours.about()}))
