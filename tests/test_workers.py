"""Handing blocks to workers: what is claimed, written and let go, who is refused, what is said. Nothing runs Ray."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import fill_block, make_builder, make_cache, make_rows, tree_bytes
from command_line import call, succeed
from viker.data.artefact import library_versions
from viker.data.example import DataError
from viker.precompute import workers as workers_module
from viker.precompute.ask import ask
from viker.precompute.cluster import MOST_SHOWN, Cluster, first_line
from viker.precompute.worker import Opened, Refused, Rows, Worker
from viker.precompute.workers import RayWorkers, recorded_device, worker_options
from viker.precompute.writing.hand_out import Computed, hand_out_blocks

if TYPE_CHECKING:
    from viker.precompute.writing.store import CacheBuilder

LENGTHS = [3, 1, 4, 1, 5] * 10


class Desk:
    """Workers that compute where they stand, and finish in no particular order."""

    def __init__(self, builder: CacheBuilder, places: int, *, stop_after: int | None = None) -> None:
        self.builder, self.places, self.stop_after = builder, places, stop_after
        self.begun: list[int] = []
        self.waiting: list[int] = []
        self.most_at_once = 0
        self._rng = random.Random(0)

    def room(self) -> int:
        return self.places - len(self.waiting)

    def begin(self, block: int) -> None:
        assert self.room() > 0
        self.begun.append(block)
        self.waiting.append(block)
        self.most_at_once = max(self.most_at_once, len(self.waiting))

    def finished(self, timeout_s: float) -> list[Computed]:
        if self.stop_after is not None and len(self.begun) > self.stop_after:
            raise KeyboardInterrupt
        if not self.waiting:
            return []
        block = self.waiting.pop(self._rng.randrange(len(self.waiting)))
        return [Computed(block, make_rows(self.builder.num_rows(block), block), "cpu")]


def hand_out(builder: CacheBuilder, desk: Desk, **options: Any) -> int:
    return hand_out_blocks(builder, desk, lambda _: 1, **options)


def claims(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("*.building/*.claim"))


def test_every_block_is_handed_out_once_and_the_bytes_are_those_of_one_maker(tmp_path):
    builder = make_builder(tmp_path / "home", LENGTHS)
    desk = Desk(builder, places=4)
    assert hand_out(builder, desk) == len(builder.blocks) == 25
    assert sorted(desk.begun) == list(range(25))
    assert desk.most_at_once == 4
    assert claims(tmp_path / "home") == []
    builder.assemble()
    make_cache(tmp_path / "whole", LENGTHS)
    assert tree_bytes(tmp_path / "home") == tree_bytes(tmp_path / "whole")


def test_a_part_hands_out_its_own_blocks(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    desk = Desk(builder, places=2)
    assert hand_out(builder, desk, part=(1, 3)) == len(range(1, 25, 3))
    assert sorted(desk.begun) == list(range(1, 25, 3))


def test_interrupted_it_keeps_what_is_staged_and_lets_go_of_the_rest(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    with pytest.raises(KeyboardInterrupt):
        hand_out(builder, Desk(builder, places=3, stop_after=8))
    assert claims(tmp_path) == []
    staged = make_builder(tmp_path, LENGTHS).complete_blocks()
    assert 5 <= len(staged) <= 9
    again = Desk(builder, places=3)
    assert hand_out(builder, again) == 25 - len(staged)
    assert not set(again.begun) & set(staged)


def test_what_another_maker_is_at_is_waited_for(tmp_path):
    builder, other = make_builder(tmp_path, LENGTHS), make_builder(tmp_path, LENGTHS)
    other_s_claim = other.staging / "block-00003.claim"
    other_s_claim.write_bytes(b'{"host":"elsewhere","pid":1,"pids":"pid:[1]"}')
    desk = Desk(builder, places=2)
    calls = 0

    def finished(timeout_s: float) -> list[Computed]:
        nonlocal calls
        calls += 1
        if calls == 40:
            fill_block(other, 3)
        return Desk.finished(desk, timeout_s)

    desk.finished = finished  # type: ignore[method-assign]
    assert hand_out(builder, desk) == 24
    assert 3 not in desk.begun
    assert calls >= 40


# ---- Workers that die, as Ray tells it -----------------------------------------------------------------------------


class Died(Exception):
    actor_init_failed = False


class FakeRay:
    """As much of Ray as `RayWorkers` uses: calls are answered at once, by a script."""

    def __init__(self, answer: Any) -> None:
        task_error = type("RayTaskError", (Died,), {})
        self.exceptions = SimpleNamespace(
            RayError=Died, RayTaskError=task_error, LocalRayletDiedError=type("LocalRayletDiedError", (Died,), {})
        )
        self._answer, self.started, self.killed = answer, 0, 0

    def remote(self, **options: Any) -> Any:
        assert options["max_restarts"] == 0
        return lambda _class: SimpleNamespace(remote=self._actor)

    def _actor(self, *_arguments: Any) -> Any:
        number, self.started = self.started, self.started + 1

        def method(name: str) -> Any:
            return SimpleNamespace(remote=lambda *arguments: (name, number, arguments, object()))

        return SimpleNamespace(place=method("place"), open=method("open"), rows=method("rows"), probe=method("probe"))

    def wait(self, calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: Any, timeout: float | None = None) -> Any:
        name, number, arguments, _ = call
        value = self._answer(name, number, arguments)
        if isinstance(value, Exception):
            raise value
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node", "Alive": True}, {"NodeID": "gone", "Alive": False}]

    def kill(self, _actor: Any, no_restart: bool) -> None:
        self.killed += 1


OPENED = Opened("naive", "cpu", False, library_versions(), ())


def working(builder: CacheBuilder, died: Any) -> Any:
    """Answers of workers that live on `node`, unless `died` says otherwise of a call."""

    def answer(name: str, number: int, arguments: tuple[Any, ...]) -> Any:
        found = died(name, number, arguments)
        if found is not None:
            return found
        if name == "rows":
            block = next(i for i, place in enumerate(builder.blocks) if builder.samples[slice(*place)] == arguments[0])
            return Rows(make_rows(builder.num_rows(block), block), None, ())
        return {"place": ("here", "node"), "open": OPENED}[name]

    return answer


def ray_workers(ray: FakeRay, builder: CacheBuilder, told: list[str], most: int = 2) -> RayWorkers:
    return RayWorkers(Cluster(ray, "cpu", 1, lambda: most), (), builder, None, 4096, told.append)


def test_the_blocks_of_a_dead_worker_go_to_another_and_it_is_replaced(tmp_path):
    builder, told, deaths = make_builder(tmp_path / "home", LENGTHS), [], []

    def died(name: str, number: int, _arguments: Any) -> Any:
        if name == "rows" and number == 0 and len(deaths) < 1:
            deaths.append(number)
            return Died("the actor died\nwith a long explanation")
        return None

    ray = FakeRay(working(builder, died))
    workers = ray_workers(ray, builder, told)
    assert hand_out_blocks(builder, workers, lambda _: 1) == 25
    workers.close()
    assert ray.started == 3
    assert ray.killed == 3
    assert any("lost the worker on here (the actor died)" in line for line in told)
    builder.assemble()
    make_cache(tmp_path / "whole", LENGTHS)
    whole = tree_bytes(tmp_path / "whole")
    assert {name for name, content in tree_bytes(tmp_path / "home").items() if whole[name] != content} == {
        f"{builder.key[:16]}/build.json", f"{builder.key[:16]}/manifest.json"
    }, "but for the engine, which the small cache was made without"  # fmt: skip


def test_a_block_that_kills_its_workers_is_named_and_not_tried_for_ever(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    poison = builder.samples[slice(*builder.blocks[7])]

    def died(name: str, _number: int, arguments: Any) -> Any:
        return Died("killed") if name == "rows" and arguments[0] == poison else None

    ray = FakeRay(working(builder, died))
    with pytest.raises(DataError, match=r"found 3 that died while computing block 7, the last on here \(killed\)"):
        hand_out_blocks(builder, ray_workers(ray, builder, []), lambda _: 1)
    assert claims(tmp_path) == []


def test_deaths_of_nodes_are_not_the_block_s_fault(tmp_path):
    builder, lost = make_builder(tmp_path, LENGTHS), []

    def died(name: str, number: int, _arguments: Any) -> Any:
        if name == "place" and number < 6:
            return ("there", "gone")
        if name == "rows" and number < 6:
            lost.append(number)
            return Died("the node died")
        return None

    assert hand_out_blocks(builder, ray_workers(FakeRay(working(builder, died)), builder, []), lambda _: 1) == 25
    assert len(lost) >= 6


def test_workers_that_die_while_loading_are_not_started_for_ever(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    ray = FakeRay(working(builder, lambda name, *_: Died("out of memory") if name == "open" else None))
    with pytest.raises(DataError, match=r"found 3 that died while loading the teacher"):
        hand_out_blocks(builder, ray_workers(ray, builder, []), lambda _: 1)


def test_a_node_without_viker_is_one_clear_error(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    error = Died("The actor died\nModuleNotFoundError: No module named 'viker'")
    error.actor_init_failed = True
    ray = FakeRay(working(builder, lambda name, *_: error if name == "place" else None))
    with pytest.raises(DataError, match=r"No module named 'viker'\. Install the same viker on every node"):
        hand_out_blocks(builder, ray_workers(ray, builder, []), lambda _: 1)


def test_where_no_node_has_room_it_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "NO_NODE_SECONDS", 0.3)
    builder = make_builder(tmp_path, LENGTHS)
    workers = ray_workers(FakeRay(None), builder, [], most=0)
    with pytest.raises(DataError, match=r"expected a node with 1 CPU core\(s\) free, found none for 0 s"):
        hand_out_blocks(builder, workers, lambda _: 1)


def test_workers_with_other_inputs_and_those_without_are_told_apart(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    for refused, kind, message in (
        (Refused("  weights: expected aa, found bb", differs=True), "CacheMismatch", "on here is refused.*expected aa"),
        (Refused("/data: found none."), "DataError", "on here cannot go on: /data: found none. Every node needs"),
    ):
        answer = working(builder, lambda name, *_, refused=refused: refused if name == "open" else None)
        with pytest.raises(ValueError, match=f"(?s){message}") as caught:
            hand_out_blocks(builder, ray_workers(FakeRay(answer), builder, []), lambda _: 1)
        assert type(caught.value).__name__ == kind


def test_a_worker_that_ran_out_of_memory_lowers_the_budget_of_all(tmp_path):
    builder, asked = make_builder(tmp_path, LENGTHS), []
    opened = Opened("shared-prefix", "cpu", True, library_versions(), ())

    def answer(name: str, number: int, arguments: Any) -> Any:
        if name == "rows":
            asked.append(arguments[1])
            rows = working(builder, lambda *_: None)(name, number, arguments)
            return Rows(rows.arrays, min(arguments[1], 1024), ("WARNING: out of memory",) if len(asked) == 1 else ())
        return opened if name == "open" else ("here", "node")

    told: list[str] = []
    hand_out_blocks(builder, ray_workers(FakeRay(answer), builder, told), lambda _: 1)
    assert asked[0] == 4096
    assert asked[-1] == 1024
    assert "WARNING: out of memory (on here)" in told
    assert b"1024" in (builder.staging / "token-budget.json").read_bytes(), "for makers that join later"


def test_what_computed_a_block_is_recorded_with_what_differs_from_here():
    assert recorded_device(OPENED, "naive") == "cpu"
    other = OPENED._replace(device="NVIDIA X", libraries={**library_versions(), "torch": "2.0"})
    assert recorded_device(other, "shared-prefix") == "NVIDIA X, engine naive, torch 2.0"


def test_long_messages_of_others_are_cut():
    assert first_line(ValueError("short.\nmore")) == "short"
    assert len(first_line(ValueError("x" * 5000))) == MOST_SHOWN + 4
    assert first_line(ValueError()) == "ValueError"


# ---- One worker in this process ------------------------------------------------------------------------------------


@pytest.fixture
def options(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> dict[str, Any]:
    return {
        "data": str(mini_world), "model": str(tiny_model_dir), "pool": str(mini_world / "pools" / "pets"),
        "split": "forget", "num_references": 2, "top_k": 8, "limit": 6, "engine": "shared-prefix",
        "teacher": "reference", "revision": None, "processor": None, "trust_remote_code": False, "chat_template": None,
        "system_prompt": None, "score_end_token": None, "ratio": None, "forget": (), "data_revision": None, "run": None,
        "dtype": "float32", "skip_text": False, "attention": "sdpa", "store_logprobs": "float16", "seed": 0,
        "shared_references": False, "deterministic": False, "token_budget": None, "device": None, "vllm_listed": None,
        "vllm_option": (), "answers": "own", "instruction": None,
    }  # fmt: skip


def test_a_worker_computes_what_its_driver_asked_for_and_refuses_other_inputs(options, tmp_path):
    fingerprint = ask(options, print).request.fingerprint
    worker = Worker(options, fingerprint, 1, "cpu")
    opened = worker.open()
    assert isinstance(opened, Opened)
    assert opened[:3] == ("shared-prefix", "cpu", True)

    other = {**fingerprint, "weights": "00" * 32}
    refused = Worker(options, other, 1, "cpu").open()
    assert refused.differs
    assert refused.why == f"  weights: expected {'00' * 32}, found {fingerprint['weights']}"

    missing = Worker({**options, "model": str(tmp_path / "nowhere")}, fingerprint, 1, "cpu").open()
    assert isinstance(missing, Refused)
    assert not missing.differs
    assert f"{tmp_path / 'nowhere'}: expected a model directory or a hub id" in missing.why


def test_paths_are_told_to_workers_in_full_and_names_as_they_are(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "people.txt").touch()
    (tmp_path / "template.jinja").touch()
    told = worker_options({
        **options, "data": "org/data", "pool": "pictures", "forget": ("people.txt", "ada"), "run": Path("run"),
        "chat_template": Path("template.jinja"),
    })  # fmt: skip
    assert told["data"] == "org/data"
    assert told["pool"] == str(tmp_path / "pictures")
    assert told["forget"] == (str(tmp_path / "people.txt"), "ada")
    assert told["chat_template"] == tmp_path / "template.jinja"
    assert told["run"] is None


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def precompute(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    pool = mini_world / "pools" / "pets"
    return [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool", str(pool), "--limit", "20",
        "--num-references", "1", "--top-k", "8",
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["0", "-1", "two", "http://host:1", "ray://host", ""])
def test_workers_that_are_none_are_a_usage_error(precompute, value):
    outcome = call(*precompute, f"--workers={value}")
    assert outcome.code == 2
    assert "expected how many workers to start here, or a Ray cluster's address" in outcome.message
    assert f"found '{value}'" in outcome.message


def test_without_ray_the_command_that_installs_it_is_named(precompute, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = call(*precompute, "--workers", "2")
    assert outcome.code == 1
    assert "expected ray, found none" in outcome.message
    assert "pip install 'viker[distributed]'" in outcome.message


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_one_clear_error(precompute, address):
    outcome = call(*precompute, "--workers", address)
    assert outcome.code == 1
    assert f"--workers {address}: expected a Ray cluster that answers, found none" in outcome.message
    assert "Connection refused" in outcome.message


def test_a_device_of_its_own_is_not_named_for_workers(precompute):
    outcome = call(*precompute, "--workers", "2", "--device", "cuda:1")
    assert outcome.code == 1
    assert "--device cuda:1: expected cpu or cuda with --workers" in outcome.message


def test_more_workers_than_gpus_is_one_clear_error(precompute, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    outcome = call(*precompute, "--workers", "2", "--device", "cuda")
    assert outcome.code == 1
    assert "--workers 2: expected a GPU each, found 1 on this machine" in outcome.message


def test_a_part_with_nothing_left_to_compute_loads_no_model(precompute, monkeypatch):
    succeed(*precompute, "--part", "0/2")

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("viker.precompute.open_teacher.load_model", refuse)
    again = succeed(*precompute, "--part", "0/2")
    assert "blocks staged; the part that finishes last seals" in again.err
    with_workers = succeed(*precompute, "--part", "0/2", "--workers", "2")
    assert "worker on" not in with_workers.err, "nor starts Ray"
    with pytest.raises(AssertionError, match="weights were loaded"):
        call(*precompute, "--part", "1/2")
