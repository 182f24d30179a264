"""What holds for every test."""

from __future__ import annotations

import signal

# A shell that starts the tests with `&` has them ignore SIGINT, and tests that interrupt something would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
