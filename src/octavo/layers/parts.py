"""Checkpoint names of the matrices that most families share. No torch; read before layers are there (`models/ahead.py`)."""

from __future__ import annotations

QKV = ("q_proj", "k_proj", "v_proj")
"""Queries, keys and values: one product."""
OUTPUT = "o_proj"
GATE_UP = ("gate_proj", "up_proj")
"""One product, too."""
DOWN = "down_proj"
