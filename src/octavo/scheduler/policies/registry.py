"""Scheduling policies by name."""

from __future__ import annotations

from octavo.core.registry import Registry
from octavo.scheduler.policies.base import Policy

POLICIES: Registry[type[Policy]] = Registry(
    "scheduling policy",
    {
        "fcfs": "octavo.scheduler.policies.fcfs:Fcfs",
        "priority": "octavo.scheduler.policies.priority:Priority",
    },
)
