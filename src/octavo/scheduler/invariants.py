"""What must hold between any two calls of a scheduler. Shipped, so that tests and a running engine can ask."""

from __future__ import annotations

from collections import Counter

from octavo.core.plan import StepPlan
from octavo.core.sequence import SequenceState
from octavo.scheduler.scheduler import Scheduler


def check(scheduler: Scheduler) -> list[str]:
    """What is wrong, [] when nothing is. O(blocks + sequences)."""
    wrong: list[str] = []
    for index, pool in enumerate(scheduler.cache.pools):
        held = Counter(block for s in scheduler.running for block in s.blocks[index] if block != 0)
        wrong += [f"group {index}: {text}" for text in pool.check(dict(held))]
    rows = [sequence.row for sequence in scheduler.running]
    if len(set(rows)) != len(rows) or -1 in rows:
        wrong.append(f"rows are not distinct: {rows}")
    for sequence in scheduler.running:
        tables = len(sequence.blocks)
        if sequence.state is not SequenceState.RUNNING or tables != len(scheduler.cache.pools):
            wrong.append(f"{sequence.id} is in running without its tables or state")
        if not 0 <= sequence.num_computed <= sequence.num_tokens:
            wrong.append(
                f"{sequence.id}: num_computed {sequence.num_computed} of {sequence.num_tokens}"
            )
    for sequence in scheduler.waiting:
        if sequence.state is not SequenceState.WAITING or sequence.blocks or sequence.row != -1:
            wrong.append(f"{sequence.id} waits but holds blocks, a row or another state")
    known = {s.id for s in scheduler.running} | {s.id for s in scheduler.waiting}
    if known != set(scheduler.by_id) or not set(scheduler.room.reserved) <= known:
        wrong.append("by_id, reserved, running and waiting disagree")
    wrong += _check_accounts(scheduler)
    if len(scheduler.running) > scheduler.limits.max_num_seqs:
        wrong.append(
            f"{len(scheduler.running)} sequences run; at most {scheduler.limits.max_num_seqs}"
        )
    return wrong


def _check_accounts(scheduler: Scheduler) -> list[str]:
    """Queues, rows and sums of the accounts against the sequences."""
    wrong: list[str] = []
    accounts = scheduler.accounts
    waiting = scheduler.waiting
    queued = sum(sequence.queued_tokens for sequence in waiting)
    if (accounts.num_waiting, accounts.queued_tokens) != (len(waiting), queued):
        wrong.append("accounts count their queues wrongly")
    rows = Counter(accounts.policy.account(s.request) for s in scheduler.running)
    for name, account in accounts.live.items():
        if account.rows != rows.pop(name, 0) or not (account.rows or account.waiting):
            wrong.append(f"account {name!r} counts {account.rows} rows, or is empty and live")
        if bool(account.waiting) and not account.is_in_heap:
            wrong.append(f"account {name!r} waits and is in no order")
        keys = [accounts.policy.order(s.request) for s in account.waiting]
        if keys != sorted(keys):
            wrong.append(f"the queue of account {name!r} is not in order")
    if rows or accounts.all.rows != len(scheduler.running):
        wrong.append(f"running sequences without an account: {rows}")
    return wrong


def check_plan(scheduler: Scheduler, plan: StepPlan) -> list[str]:
    """What is wrong with a plan just made."""
    wrong: list[str] = []
    if plan.num_tokens > scheduler.limits.max_num_batched_tokens:
        wrong.append(f"{plan.num_tokens} tokens exceed the budget")
    rows = [piece.row for piece in plan.slices]
    if len(set(rows)) != len(rows):
        wrong.append("two slices for one row")
    by_row = {sequence.row: sequence for sequence in scheduler.running}
    for piece in plan.slices:
        sequence = by_row.get(piece.row)
        if sequence is None:
            wrong.append(f"a slice for row {piece.row}, which nobody owns")
            continue
        if piece.start != sequence.num_computed or piece.count < 1:
            wrong.append(
                f"{sequence.id}: slice {piece.start}+{piece.count} at {sequence.num_computed}"
            )
        if piece.sample != (piece.start + piece.count == sequence.num_tokens):
            wrong.append(f"{sequence.id}: samples without reaching its end, or the other way")
        wrong += [
            f"{sequence.id}: no block for token {piece.start + piece.count - 1}"
            for table in sequence.blocks
            if len(table) * 16 < piece.start + piece.count
        ]
    return wrong
