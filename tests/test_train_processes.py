"""Several processes as one run (torchrun, gloo): the steps of one process, one that writes, and how all of them end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command_line import call, succeed
from peft import PeftModel
from safetensors.torch import load_file
from training_run import checkpoints, results
from viker.data.artefact import is_complete, read_json

if TYPE_CHECKING:
    from viker.models.load import Loaded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
DEADLINE_S = 900
HERE = Path(__file__).parent
METHODS = ("recommended", "gd", "idkpo", "rmu", "mmunlearner")  # a retain term; two forward passes; layers; a mask
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
VIKER = ("-m", "--", "viker")  # `--` keeps torchrun from taking `--run` for its own
SHARED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows") / "caches"


@pytest.fixture(scope="module")
def run(
    mini_world: Path, tiny_model_dir: Path, rows_home: Path, tmp_path_factory: pytest.TempPathFactory, quiet_torch: None
) -> Path:
    """A run directory with the rows that the methods read."""
    directory = tmp_path_factory.mktemp("several") / "run"
    named = ["--data", mini_world, "--model", tiny_model_dir, "--run", directory]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIKER_CACHE_DIR", str(rows_home))
        pool = mini_world / "pools" / "pets"
        succeed("precompute", *named, "--pool", pool, "--num-references", 2, "--top-k", 8, "--split", "forget")
        succeed("precompute", *named, "--teacher", "self", "--split", "retain-seen")
        succeed("precompute", *named, "--teacher", "self", "--split", "forget", "--top-k", 0)
        answers = ("--answers", "refusal", "--top-k", 0)
        succeed("precompute", *named, "--teacher", "self", "--split", "forget", *answers)
    return directory


@pytest.fixture(autouse=True)
def known_rows(rows_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIKER_CACHE_DIR", str(rows_home))


@pytest.fixture
def words(mini_world: Path, tiny_model_dir: Path, run: Path) -> list[str]:
    """Nine examples, so that a last step of one leaves a process without any."""
    return [
        "train", "--data", str(mini_world), "--model", str(tiny_model_dir), "--run", str(run), "--top-k", "8",
        "--limit", "9", "--num-train-epochs", "2", "--per-device-train-batch-size", "2", "--learning-rate", "1e-3",
        "--no-stop",
    ]  # fmt: skip


def alone(words: list[str], *options: object) -> None:
    """One process that takes the steps of two with half the accumulation."""
    succeed(*words, "--gradient-accumulation-steps", 4, *options)


def launched(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def both(words: list[str], *options: object, script: tuple[str, ...] = VIKER, **environment: str) -> str:
    """Two processes that have to succeed."""
    told = [*words, "--gradient-accumulation-steps", "2", *map(str, options)]
    process = launched([*LAUNCHER, *script, *told], **environment)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    return out


def steps_of(adapter: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (adapter / "training_log.jsonl").read_text().splitlines()]


def require_alike(one: Path, other: Path, *, close: float) -> None:
    """Fail unless two adapters took the same steps, to rounding."""
    ours, theirs = steps_of(one), steps_of(other)
    assert len(ours) == len(theirs) == 4
    for step, other_step in zip(ours, theirs, strict=True):
        assert other_step["loss"] == pytest.approx(step["loss"], rel=close, abs=close)
        assert other_step["terms"] == pytest.approx(step["terms"], rel=close, abs=close)
        assert other_step["gradient_norm"] == pytest.approx(step["gradient_norm"], rel=close, abs=close)
        for name in ("epoch", "learning_rate", "key_logprob", "key_teacher_logprob"):
            assert other_step[name] == pytest.approx(step[name], rel=close, abs=close)
    expected, found = (load_file(adapter / "adapter_model.safetensors") for adapter in (one, other))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=close, rtol=close)


def adapters_in(folder: Path, run: Path) -> dict[str, Path]:
    """The run's adapters by method, put aside."""
    (run / "adapters").rename(folder)
    return {path.name.rsplit("-", 1)[0]: path for path in folder.iterdir()}


@pytest.mark.parametrize("drawn", ["--sample-examples", "--group-by-image"])
def test_two_processes_take_the_steps_of_one(words, run, tmp_path, drawn):
    methods = [word for name in METHODS for word in ("--method", name)]
    alone(words, drawn, *methods)
    expected = adapters_in(tmp_path / "alone", run)
    out = both(words, drawn, *methods)
    found = adapters_in(tmp_path / "both", run)
    assert expected.keys() == found.keys() == set(METHODS)
    for name in METHODS:
        require_alike(expected[name], found[name], close=1e-5)
        assert is_complete(found[name])
        assert read_json(found[name] / "provenance.json")["processes"] == 2
        assert out.count(f"train: {name}: 4 steps in") == 1, "the main process speaks"
    assert "goes on" not in out


def test_accelerates_launcher_is_as_good(words, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--num_processes", "2", "--mixed_precision", "bf16", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", "0", "-m", "viker"]
    told = [*words, "--method", "recommended", "--gradient-accumulation-steps", "2", "--output", str(tmp_path / "both")]
    process = launched([*launcher, *told], ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    alone(words, "--method", "recommended", "--output", tmp_path / "alone")
    require_alike(tmp_path / "alone", tmp_path / "both", close=1e-5)
    assert read_json(tmp_path / "both" / "provenance.json")["processes"] == 2


def test_a_run_is_measured_by_the_main_process(words, tmp_path):
    points = ("--method", "gd", "--evaluate-every", 2, "--evaluate-people", 1, "--keep-best", "harmonic")
    alone(words, *points, "--output", tmp_path / "alone")
    both(words, *points, "--output", tmp_path / "both")
    require_alike(tmp_path / "alone", tmp_path / "both", close=1e-5)
    expected, found = (
        [json.loads(line) for line in (tmp_path / name / "trajectory.jsonl").read_text().splitlines()]
        for name in ("alone", "both")
    )
    assert [point["step"] for point in found] == [point["step"] for point in expected] == [0, 2, 4]
    for one, other in zip(expected, found, strict=True):
        for exact in [name for name in one if name == "schema" or name.endswith("_fact_people")]:
            assert one.pop(exact) == other.pop(exact)
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "script", "environment"),
    [("mmunlearner", VIKER, {}), ("recommended", ("--", str(HERE / "fsdp_on_cpu.py")), SHARED)],
    ids=["whole weights", "shared weights"],
)
def test_both_stop_behind_the_same_step_and_go_on_to_the_same_bytes(words, tmp_path, method, script, environment):
    words = [*words, "--method", method, "--lora-dropout", "0.2", "--num-train-epochs", "6", "--save-steps", "5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    both(words, "--output", whole, script=script, **environment)
    told = [*words, "--gradient-accumulation-steps", "2", "--output", str(broken)]
    process = launched([*LAUNCHER, *script, *told], **environment)
    log, end = broken / "training_log.jsonl", time.monotonic() + DEADLINE_S
    while not log.is_file() or log.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
    assert "The same command goes on from there." in out
    (saved,) = checkpoints(broken)
    assert int(saved[-5:]) == len(steps_of(broken))
    at = len(steps_of(broken))
    assert f"goes on from step {at}" in both(words, "--output", broken, script=script, **environment)
    assert results(broken) == results(whole)


def test_another_number_of_processes_is_another_run(words, tmp_path):
    told = [*words, "--method", "ga", "--output", str(tmp_path / "adapter"), "--save-steps", "1"]
    process = launched([*LAUNCHER, *VIKER, *told, "--num-train-epochs", "50"])
    end = time.monotonic() + DEADLINE_S
    while not any("." not in name for name in checkpoints(tmp_path / "adapter")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    refused = call(*told, "--num-train-epochs", 50)
    assert refused.code == 3
    assert "processes" in refused.message
    assert "--no-resume" in refused.message


OWN_METHOD = """
import os

from viker.data.example import DataError
from viker.train.method import Method, Term

steps = []


def fail_on_the_second(scored, settings):
    steps.append(0)
    if os.environ["RANK"] == "1" and len(steps) > 2:
        raise DataError("process 1 has had enough")
    return scored.answer_logprob_M.sum()


mine = Method(
    name="mine", paper="-", fidelity="ours", summary="-", forget=(Term("ascent", fail_on_the_second),), settings={}
)
"""


def test_an_error_on_one_process_ends_the_other_soon(words, tmp_path):
    (tmp_path / "mine.py").write_text(OWN_METHOD)
    told = [*words, "--method", f"{tmp_path / 'mine.py'}:mine", "--output", str(tmp_path / "adapter")]
    started = time.monotonic()
    process = launched([*LAUNCHER, *VIKER, *told])
    out, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Error: process 1 has had enough" in out
    assert out.count("Error: process") == 1
    assert "train: mine: stopped: another process ended" in out
    assert "in _run_phase" not in out, "no traceback of ours"
    assert time.monotonic() - started < 240


@pytest.mark.parametrize(
    ("case", "raised"),
    [
        ("on the other", ("ProcessLost: process 1 ended with an error", "ValueError: process 1 has had enough")),
        ("on both", ("ValueError: process 0 has had enough", "ProcessLost: process 0 ended with an error")),
        ("on the main one", ("ZeroDivisionError: division by zero", "ProcessLost: process 0 ended with an error")),
        ("on none", ("nothing", "nothing")),
    ],
)
def test_one_process_speaks_and_all_of_them_end(case, raised):
    process = launched([*LAUNCHER, str(HERE / "one_fails.py"), case])
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    assert [line for line in sorted(out.splitlines()) if " raised " in line] == [
        f"{rank} raised {told}" for rank, told in enumerate(raised)
    ]


def test_shared_weights_take_the_same_steps(words, run, tmp_path, tiny: Loaded):
    methods = ("recommended", "rmu", "mmunlearner")
    named = [word for name in methods for word in ("--method", name)]
    both(words, *named)
    expected = adapters_in(tmp_path / "whole", run)
    out = both(words, *named, script=("--", str(HERE / "fsdp_on_cpu.py")), **SHARED)
    found = adapters_in(tmp_path / "shared", run)
    for name in methods:
        require_alike(expected[name], found[name], close=1e-4)
        assert is_complete(found[name]), out
        loaded = PeftModel.from_pretrained(tiny.model, found[name])
        assert all(torch.isfinite(weight).all() for weight in loaded.parameters())
        loaded.unload()


def test_what_cannot_be_done_with_shared_weights_is_one_clear_error(words, tmp_path):
    told = [*words, "--method", "ga", "--output", str(tmp_path / "adapter"), "--evaluate-every", "2"]
    process = launched([*LAUNCHER, "--", str(HERE / "fsdp_on_cpu.py"), *told], **SHARED)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
    assert out.count("Error: --evaluate-every 2: expected every process to hold the weights") == 1
    assert not (tmp_path / "adapter").exists()
