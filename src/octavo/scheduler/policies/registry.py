"""Scheduling policies by name."""

from __future__ import annotations

from octavo.core.registry import Registry
from octavo.scheduler.policies.base import Policy

POLICIES: Registry[type[Policy]] = Registry(
    "scheduling policy",
    {
        "fair": "octavo.scheduler.policies.fair:Fair",
        "fcfs": "octavo.scheduler.policies.fcfs:Fcfs",
        "priority": "octavo.scheduler.policies.priority:Priority",
    },
)
