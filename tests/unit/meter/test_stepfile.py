"""The step log on disk: what is read is what was written, up to a tear, within its size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.core.kvspec import KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import SliceResult, StepResult
from octavo.meter import stepfile
from octavo.meter.frames import Arrived, Ended, Machine, decode, encode
from octavo.meter.stepfile import StepFile, files, read_runs, read_steplog
from octavo.meter.steplog import StepLog, Waits

MACHINE = Machine(
    model="m",
    policy="fair",
    limits={"max_num_seqs": 8},
    groups=(KVGroup(spec=KVSpec(num_kv_heads=1, head_dim=8), layers=(0,), num_blocks=11),),
    enable_prefix_caching=True,
)


def arrived(number: int, name: str) -> Arrived:
    return Arrived(number, name, 0.0, 4, 9, 0, 0, "t", 1.0, None, None, 0, 0, False, False)


def request(name: str) -> Request:
    return Request(
        id=name, token_ids=(1,), params=SamplingParams(), max_tokens=9, seed=0, arrived=0.0
    )


class Writer:
    """A log of one request after the other, on a folder."""

    def __init__(self, folder: Path, most_bytes: int = 1 << 20) -> None:
        self.file = StepFile(folder, most_bytes, MACHINE)
        self.log = StepLog(capacity=1 << 16, sink=self.file)
        self.step = 0

    def begin(self, name: str) -> None:
        self.log.settle()
        self.file.arrived(name, lambda number: arrived(number, name))
        start = SequenceStart(
            row=0, request=request(name), token_ids=(1,), blocks=((3,),), epochs=((1,),)
        )
        self.add(StepPlan(step=0, starts=(start,), slices=(self.slice(0, 4),)))

    @staticmethod
    def slice(start: int, count: int = 1) -> Slice:
        return Slice(row=0, start=start, count=count, sample=True)

    def add(self, plan: StepPlan) -> None:
        self.step += 1
        plan = StepPlan(step=self.step, ended=plan.ended, starts=plan.starts, slices=plan.slices)
        results = tuple(SliceResult(row=0, token_ids=(5,)) for _ in plan.slices)
        waits = Waits((("no_row", 2),), (("q", "no_row"),)) if self.step % 7 == 0 else Waits()
        self.log.add(
            plan,
            StepResult(step=self.step, slices=results, elapsed_s=0.001),
            waits=waits,
            num_blocks=10,
            num_free_blocks=6,
        )

    def play(self, num_requests: int) -> None:
        for index in range(num_requests):
            name = f"{index:032d}"
            self.begin(name)
            for position in range(4, 12):
                self.add(StepPlan(step=0, slices=(self.slice(position),)))
            number = self.file.number_of(name)
            assert number is not None
            self.log.settle()
            self.file.ended(name, Ended(number, "step", "length", False, 9, 0.0))
            self.add(StepPlan(step=0, ended=(0,)))


def test_what_is_read_is_what_was_told(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.play(20)
    writer.log.flush()
    told = writer.log.tail(1000)
    read = read_steplog(tmp_path)
    assert [r.slices for r in read] == [r.slices for r in told]
    assert [r.ended for r in read] == [r.ended for r in told]
    assert [(r.at, r.gap_s, r.waiting) for r in read] == [(r.at, r.gap_s, r.waiting) for r in told]
    [run] = read_runs(tmp_path)
    assert run.is_whole and run.head.machine == MACHINE
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size / len(told) < 150


def test_a_killed_engine_leaves_what_it_wrote_up_to_the_tear(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.play(3)
    writer.log.flush()
    [path] = tmp_path.iterdir()
    data = path.read_bytes()
    whole = list(decode(data))
    for cut in range(len(data) - 1, len(data) - 120, -1):
        frames = list(decode(data[:cut]))
        assert frames == whole[: len(frames)] and len(whole) - 3 <= len(frames) < len(whole)
    at = len(encode(whole[0])) + 20
    bent = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert list(decode(bent)) == whole[:1], "a flipped bit is not read past"
    assert list(decode(b"\xff" * 64)) == [] and list(decode(b"")) == []
    path.write_bytes(data[:-5])
    other = Writer(tmp_path)
    other.play(1)
    other.log.close()
    runs = read_runs(tmp_path)
    assert len(runs) == 2 and runs[0].head.run != runs[1].head.run


def test_the_ring_keeps_within_its_size_and_each_file_can_be_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepfile, "_LEAST_FILE_BYTES", 2048)
    monkeypatch.setattr(stepfile, "_MOST_BUFFERED", 256)
    most = 8 * 2048
    writer = Writer(tmp_path, most)
    for _ in range(30):
        writer.play(10)
        writer.log.flush()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most + 1024
    [run] = read_runs(tmp_path)
    assert not run.is_whole and run.head.segment > 5
    read = read_steplog(tmp_path)
    told = writer.log.tail(len(read))
    assert [r.slices for r in read] == [r.slices for r in told], "open requests keep their names"
    assert read[-1].step == writer.step
    middle = read[len(read) // 2]
    some = files(tmp_path, middle.at, middle.at + 1e-4)
    assert 1 <= len(some) < len(files(tmp_path))


def test_a_full_disk_ends_the_log_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer.play(2)
    writer.log.flush()
    assert not writer.file.is_open
    writer.play(2)
    writer.log.close()
    assert len(writer.log) == writer.step
