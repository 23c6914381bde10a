"""While a block is computed the next one is read and the one before written; nothing else about a cache changes."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import succeed
from viker.data.artefact import read_json
from viker.precompute.writing.overlap import Overlap, Spent, Steps
from viker.precompute.writing.schedule import stage_blocks
from viker.tests.cache_maker import LENGTHS, NUM_BLOCKS
from viker.tests.cache_samples import fill_block, make_builder, make_cache, tree_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from viker.precompute.writing.store import CacheBuilder

DEADLINE_S = 20


class Recorder:
    """Steps that write down when each began and ended, after whatever a test makes them wait for or raise."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.read_s = self.compute_s = self.write_s = 0.0
        self.raising: dict[str, BaseException] = {}
        self.waiting: dict[str, str] = {}  # an event that waits for another

    def happened(self, event: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while self.waiting.get(event, event) not in [*self.events, event]:
            assert time.monotonic() < end, f"{event} waits for {self.waiting[event]} in vain: {self.events}"
            time.sleep(0.001)
        self.events.append(event)
        if event in self.raising:
            raise self.raising[event]

    def prepare(self, block: int) -> Iterator[str]:
        self.happened(f"read {block}")
        time.sleep(self.read_s)
        yield f"first of {block}"
        self.happened(f"half read {block}")
        yield f"second of {block}"

    def compute(self, block: int, items: list[str]) -> str:
        assert items == [f"first of {block}", f"second of {block}"]
        self.happened(f"compute {block}")
        time.sleep(self.compute_s)
        self.happened(f"computed {block}")
        return f"rows of {block}"

    def write(self, block: int, rows: str) -> None:
        assert rows == f"rows of {block}"
        self.happened(f"write {block}")
        time.sleep(self.write_s)
        self.happened(f"written {block}")

    @contextlib.contextmanager
    def hold(self, block: int) -> Iterator[None]:
        self.events.append(f"hold {block}")
        try:
            yield
        finally:
            self.events.append(f"drop {block}")

    def claimed(self, count: int) -> Iterator[int]:
        for block in range(count):
            self.happened(f"claim {block}")
            yield block

    def run(self, count: int) -> Spent:
        with Overlap(Steps(self.prepare, self.compute, self.write), self.hold) as overlap:
            self.staged = []
            for block in overlap.run(self.claimed(count)):
                self.staged.append(block)
        return overlap.spent

    def at(self, event: str) -> int:
        return self.events.index(event)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_every_block_goes_through_its_steps_once_and_is_told_when_it_is_staged(recorder):
    recorder.run(5)
    assert recorder.staged == list(range(5))
    for block in range(5):
        steps = ("claim", "hold", "read", "half read", "compute", "computed", "write", "written", "drop")
        places = [recorder.at(f"{step} {block}") for step in steps]
        assert places == sorted(places)
    assert len(recorder.events) == len(set(recorder.events)) == 45


def test_the_next_is_read_and_the_one_before_written_while_one_is_computed(recorder):
    """Computing block 2 ends when block 3 is read and block 1 written: in turns it would wait for ever."""
    recorder.waiting = {"computed 2": "half read 3", "compute 2": "write 1", "written 1": "compute 2"}
    recorder.run(5)
    assert recorder.staged == list(range(5))


def test_at_most_one_block_is_ahead_and_one_behind(recorder):
    recorder.compute_s = 0.01
    recorder.run(8)
    for block in range(6):
        assert recorder.at(f"read {block + 2}") > recorder.at(f"computed {block}"), "two ahead"
    for block in range(7):
        assert recorder.at(f"written {block}") < recorder.at(f"write {block + 1}"), "two behind"


def test_claims_are_taken_while_the_writer_rests_so_that_a_cache_s_files_change_in_one_order(recorder):
    recorder.write_s = 0.005
    recorder.run(8)
    about_files = [event for event in recorder.events if event.split()[0] in ("claim", "hold", "write", "drop")]
    again = Recorder()
    again.read_s = again.compute_s = 0.003
    again.run(8)
    assert about_files == [event for event in again.events if event.split()[0] in ("claim", "hold", "write", "drop")]


def test_nothing_claimed_is_nothing_done(recorder):
    recorder.run(0)
    assert recorder.events == []


def test_an_error_in_reading_is_raised_as_it_is_and_what_was_computed_is_staged(recorder):
    recorder.raising = {"half read 3": ValueError("cannot be decoded")}
    recorder.waiting = {"computed 2": "half read 3"}
    with pytest.raises(ValueError, match="cannot be decoded"):
        recorder.run(8)
    assert "written 2" in recorder.events
    assert not {"compute 3", "read 5"} & set(recorder.events)


def test_an_error_in_writing_is_raised_as_it_is_before_another_block_is_computed(recorder):
    recorder.raising = {"write 1": OSError("disk full")}
    with pytest.raises(OSError, match="disk full"):
        recorder.run(8)
    assert "compute 3" not in recorder.events
    assert "write 2" not in recorder.events


def test_an_error_in_computing_leaves_the_block_before_staged(recorder):
    recorder.raising = {"compute 3": RuntimeError("no such kernel")}
    recorder.waiting = {"written 2": "compute 3"}
    with pytest.raises(RuntimeError, match="no such kernel"):
        recorder.run(8)
    assert "written 2" in recorder.events


@pytest.mark.parametrize("event", ["half read 3", "compute 3", "computed 3", "write 2", "claim 5"])
def test_however_it_ends_no_claim_is_left(recorder, event):
    recorder.raising = {event: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        recorder.run(8)
    held = {event.split()[1] for event in recorder.events if event.startswith("hold")}
    assert held == {event.split()[1] for event in recorder.events if event.startswith("drop")}
    assert not [thread.name for thread in threading.enumerate() if "precompute" in thread.name]


def test_an_interrupt_waits_for_the_writer_but_not_for_the_rest_of_a_block_s_pictures(recorder):
    read = []

    def prepare(block: int) -> Iterator[int]:
        for number in range(1000):
            read.append((block, number))
            time.sleep(0.01 if block else 0)
            yield number

    def compute(block: int, items: list[int]) -> None:
        if block == 0:
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Overlap(Steps(prepare, compute, recorder.write), recorder.hold) as overlap:
        list(overlap.run(iter(range(3))))
    assert time.monotonic() - begun < 5
    assert len([block for block, _ in read if block == 1]) < 100


def test_a_second_error_is_told_beside_the_first(recorder, caplog):
    recorder.raising = {"compute 3": RuntimeError("no such kernel"), "written 2": OSError("disk full")}
    recorder.waiting = {"written 2": "compute 3"}
    with pytest.raises(RuntimeError, match="no such kernel"):
        recorder.run(8)
    assert "could not be staged either: disk full" in caplog.text


def test_time_spent_waiting_for_input_is_accounted(recorder):
    recorder.read_s, recorder.compute_s = 0.06, 0.02
    spent = recorder.run(6)
    assert 6 * 0.02 <= spent.computing < 6 * 0.02 + 0.15
    assert 6 * 0.06 - 5 * 0.02 <= spent.waiting_for_input + 0.01 < 6 * 0.06 + 0.15
    assert spent.waiting_for_writer < 0.1
    assert spent.without(0.0)["busy"] < 0.45


def test_time_spent_waiting_for_the_writer_is_accounted(recorder):
    recorder.write_s, recorder.compute_s = 0.06, 0.02
    spent = recorder.run(6)
    assert 6 * 0.06 - 5 * 0.02 <= spent.waiting_for_writer + 0.01 < 6 * 0.06 + 0.15
    assert spent.waiting_for_input < 0.1
    assert spent.without(0.0)["busy"] < 0.45


def test_who_computes_longest_waits_for_the_first_input_and_the_last_write_alone(recorder):
    recorder.read_s, recorder.compute_s, recorder.write_s = 0.02, 0.06, 0.02
    spent = recorder.run(8)
    assert spent.without(0.0)["busy"] > 0.8
    assert spent.total < 8 * 0.06 + 0.02 + 0.02 + 0.25, "in turns it would be 0.8 s"
    shares = (spent.computing, spent.waiting_for_input, spent.waiting_for_writer)
    assert sum(shares) == pytest.approx(spent.total, abs=0.05)


def test_what_was_no_computing_is_left_out_of_the_share():
    spent = Spent(computing=12.0, waiting_for_input=1.0, waiting_for_writer=0.5, total=14.0)
    assert spent.without(10.0) == {"computing": 2.0, "for_input": 1.0, "for_writer": 0.5, "busy": 0.5}


def steps_of(builder: CacheBuilder, seconds: float = 0.0) -> Steps[int, int]:
    def compute(block: int, items: list[int]) -> int:
        time.sleep(seconds)
        return block

    return Steps(lambda _: iter(()), compute, lambda block, _: fill_block(builder, block))


def test_overlapped_or_in_turns_a_cache_has_the_same_bytes(tmp_path: Path):
    builder = make_builder(tmp_path / "overlapped", LENGTHS)
    made = stage_blocks(builder, steps_of(builder), lambda _: 3)
    assert made.num_pairs == 3 * NUM_BLOCKS
    assert tree_bytes(builder.assemble()) == tree_bytes(make_cache(tmp_path / "in-turns", LENGTHS))


def test_a_block_that_is_queued_is_claimed_and_its_claim_renewed(tmp_path: Path):
    builder, timeout_s, ages = make_builder(tmp_path, LENGTHS), 0.5, []
    queued = builder.staging / "block-00001.claim"

    def compute(block: int, items: list[int]) -> int:
        if block == 0:
            for _ in range(15):
                time.sleep(0.1)
                ages.append(time.time() - queued.stat().st_mtime)
        return block

    steps = Steps(lambda _: iter(()), compute, lambda block, _: fill_block(builder, block))
    stage_blocks(builder, steps, lambda _: 1, timeout_s=timeout_s)
    assert max(ages) < timeout_s
    assert not list(builder.staging.glob("*.claim"))


def test_a_maker_that_comes_second_computes_what_is_neither_staged_nor_held(tmp_path: Path):
    first, computed = make_builder(tmp_path, LENGTHS), []
    fill_block(first, 0)
    second = make_builder(tmp_path, LENGTHS)

    def compute(block: int, items: list[int]) -> int:
        computed.append(block)
        if block == 5:
            fill_block(first, 6)  # claimed and queued here, and staged by somebody meanwhile
        return block

    made = stage_blocks(
        second, Steps(lambda _: iter(()), compute, lambda block, _: fill_block(second, block)), lambda _: 1
    )
    assert computed == list(range(1, NUM_BLOCKS))
    assert made.num_pairs == NUM_BLOCKS - 1
    assert tree_bytes(second.assemble()) == tree_bytes(make_cache(tmp_path / "whole", LENGTHS))


def test_the_command_says_how_busy_the_engine_was_and_what_it_waited_for(
    mini_world: Path, tiny_model_dir: Path, tmp_path: Path
):
    precompute = [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool",
        str(mini_world / "pools" / "pets"), "--num-references", "1", "--limit", "20", "--run", str(tmp_path / "run"),
    ]  # fmt: skip
    outcome = succeed(*precompute)
    share = re.search(r"20 pairs computed in [0-9.]+ s, engine busy (\d+)%", outcome.out)
    spent = read_json(next((tmp_path / "run").rglob("provenance.json")))["spent"]
    assert share is not None
    assert int(share[1]) == round(100 * spent["busy"])
    assert spent.keys() == {"computing", "for_input", "for_writer", "busy"}
    assert 0 < spent["busy"] <= 1
    assert not [name for name in read_build(outcome.out) if name in ("spent", "seconds")], "times differ, bytes may not"


def read_build(said: str) -> dict[str, object]:
    return read_json(Path(said.split("-> ")[1].splitlines()[0]) / "build.json")
