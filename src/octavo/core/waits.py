"""Why a request waits instead of running: the words that scheduler, step log and whoever explains them share."""

from __future__ import annotations

NO_ROW = "no_row"
"""As many run as may."""
LAST_ROW = "last_row"
"""The last row is kept for a tenant that has less than its share."""
NO_ROOM = "no_room"
"""The KV cache has no blocks for it, or will have none for what runs already."""
NO_BUDGET = "no_budget"
"""The step's tokens, or its predicted time, went to others."""
HELD_BACK = "held_back"
"""Another request is computing the prefix that it can share."""
BEHIND = "behind"
"""Others come before it."""
GRAMMAR = "grammar"
"""The engine builds its grammar."""

REASONS = (NO_ROW, LAST_ROW, NO_ROOM, NO_BUDGET, HELD_BACK, BEHIND, GRAMMAR)
