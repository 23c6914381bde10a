"""pipeline.sh walked with real commands: the embedded benchmark, a paper preset on tiny stand-ins, and your own people.

Every `viker` the script calls is the real one behind a probe that writes down its arguments, how long it took and
whether it imported torch. Worlds are as small as the format allows; whether methods work is not asked here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from viker.data.halves import half_of
from viker.data.mini import KINDS, answer_about, make_world, picture_of

SCRIPT = Path(__file__).parents[1] / "pipeline.sh"
SMALL = (
    "--data.people", "20", "--finetune.num-train-epochs", "1", "--finetune.limit", "60", "--num-train-epochs", "1",
    "--evaluate-people", "1", "--evaluate.limit", "1", "--precompute.num-references", "2",
)  # fmt: skip
PROBE = """
import atexit, json, os, sys, time
started = time.monotonic()
def note():
    call = {"words": sys.argv[1:], "torch": "torch" in sys.modules, "seconds": time.monotonic() - started}
    with open(os.environ["PROBE_LOG"], "a") as log:
        log.write(json.dumps(call) + "\\n")
atexit.register(note)
from viker.cli import main
if os.environ.get("PROBE_SEES_LITTLE") and "base" in sys.argv:  # 1200 steps of learning to see take half a minute
    from viker.train import see
    see.NUM_STEPS = 10
main()
"""


class Walk:
    """One call of pipeline.sh: how it ended, what it said, and the commands it ran."""

    def __init__(self, result: subprocess.CompletedProcess[str], calls: list[dict[str, Any]]) -> None:
        self.code, self.out, self.err, self.calls = result.returncode, result.stdout, result.stderr, calls

    def ran(self, *words: str) -> dict[str, Any]:
        """Return the one call of a command."""
        (call,) = [call for call in self.calls if all(word in call["words"] for word in words)]
        return call


class Workplace:
    """A folder to call pipeline.sh from, with its own caches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        probe = folder / "bin" / "viker"
        (folder / "probe.py").write_text(PROBE)
        probe.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "probe.py"}" "$@"\n')
        probe.chmod(0o755)

    def walk(self, *words: str, **environment: str) -> Walk:
        log = self.folder / "calls.jsonl"
        log.unlink(missing_ok=True)
        result = subprocess.run(
            ["bash", str(SCRIPT), *words],
            cwd=self.folder,
            text=True,
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                "PROBE_LOG": str(log),
                "OMP_NUM_THREADS": "1",
                "VIKER_CACHE_DIR": str(self.folder / "caches"),
                "PYTHONWARNINGS": "ignore",
                **environment,
            },
        )
        assert "Traceback" not in result.stderr, result.stderr[-2000:]
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return Walk(result, [call for call in calls if call["words"][0] != "pipeline"])

    def finish(self, *words: str, **environment: str) -> Walk:
        walk = self.walk(*words, **environment)
        assert walk.code == 0, walk.err[-2000:]
        return walk


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def adapters(run: Path, method: str) -> set[str]:
    return {name for name in names(run / "adapters") if name.startswith(f"{method}-")}


def report_of(run: Path) -> dict[str, Any]:
    assert (run / "report" / "report.md").stat().st_size > 500
    found: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())
    return found


def assert_skips_everything(walk: Walk, commands: int) -> None:
    """A walk that has nothing to do says so of every stage, at once, and never imports torch."""
    assert walk.code == 0, walk.err
    assert walk.err == ""
    said = [line for line in walk.out.splitlines() if "complete, skipped" in line]
    assert len(walk.calls) == commands
    assert len(said) >= commands
    assert [call["words"] for call in walk.calls if call["torch"]] == []
    assert max(call["seconds"] for call in walk.calls) < 3
    assert sum(call["seconds"] for call in walk.calls) < commands


# ---- your own people -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_people(tmp_path: Path) -> Path:
    """Six people in the format the README shows: one to forget, and some of each half to retain."""
    folder = tmp_path / "my people"
    folder.mkdir()
    lines = []
    for person in make_world(5, 20).people[:6]:
        (folder / f"{person.id}.png").write_bytes(picture_of(5, person, 0))
        for number, (kind, about) in enumerate(list(KINDS.items())[:3]):
            line = {"person": person.id, "image": f"{person.id}.png", "answer": answer_about(person, kind)}
            lines.append({**line, "question": about.questions[0]})
            if number == 0:
                lines.append({**line, "question": about.questions[2], "split": "test"})
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {half_of(line["person"]) for line in lines[4:]} == {"seen", "held-out"}
    return folder


def test_own_people_are_walked_from_their_folder_to_a_report(
    own_people: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    place = Workplace(tmp_path / "a place")
    shutil.copytree(tiny_model_dir, place.folder / "my model")
    shutil.move(own_people, place.folder / "my people")
    line = ("own", "my people", "--forget", "001", "--model", "my model", "--run", "./out")
    walk = place.finish(*line, "--num-train-epochs", "1", "--evaluate.max-new-tokens", "4")
    run = place.folder / "out"
    assert [call["words"][2] for call in walk.calls] == [
        "data",
        "precompute",
        "precompute",
        "train",
        "evaluate",
        "report",
    ]
    assert len(adapters(run, "recommended")) == 1
    report = report_of(run)
    assert {model["name"] for model in report["models"]} == {"vanilla", *names(run / "adapters")}
    assert str(run / "report" / "report.md") in walk.out
    again = place.walk(*line, "--num-train-epochs", "1", "--evaluate.max-new-tokens", "4")
    assert_skips_everything(again, 6)


@pytest.mark.slow
def test_own_people_who_do_not_exist_are_an_error_before_anything_is_made(
    own_people: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    place = Workplace(tmp_path / "a place")
    walk = place.walk("own", str(own_people), "--forget", "nobody", "--model", str(tiny_model_dir), "--run", "./out")
    assert walk.code == 1
    assert "found unknown nobody. Known are 001, 002" in walk.err
    assert not (place.folder / "out").exists()


# ---- CLEAR -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clear_is_walked_in_its_published_layout_to_a_report(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "a place")
    small = ("--evaluate.max-new-tokens", "4", "--method", "viker")
    walk = place.finish("clear", "--run", "./out", *SMALL, *small, PROBE_SEES_LITTLE="yes")
    assert walk.out.startswith("mini-clear, not comparable with published CLEAR numbers")
    run = place.folder / "out"
    report = report_of(run)
    assert {model["name"] for model in report["models"]} == {"vanilla", "retain-only", *names(run / "adapters")}
    assert {row["split"] for row in report["scores"]} >= {"forget", "retain-heldout", "real", "controls"}
    assert {row["task"] for row in report["scores"]} == {"captioning", "recognition", "generation", "classification"}
    assert report["clear"]["retain-only"]["values"].keys() >= {"Model Utility", "Forget metric", "Forget Quality"}
    assert report["forgetting"]["label"] == "against retain-only and controls"
    assert_skips_everything(place.walk("clear", "--run", "./out", *SMALL, *small), len(walk.calls))


# ---- a paper preset --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_paper_preset_is_walked_with_a_tiny_model_and_tiny_data(
    mini_world: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    place = Workplace(tmp_path / "a place")
    run = place.folder / "out"
    line = (
        "mllmu",
        "--preset",
        "mllmu-10",
        "--model",
        str(tiny_model_dir),
        "--data.source",
        str(mini_world),
        "--run",
        "./out",
        "--precompute.num-references",
        "1",
        "--evaluate.limit",
        "1",
        "--evaluate.max-new-tokens",
        "4",
    )
    walk = place.finish(*line, HF_HUB_OFFLINE="1")
    assert [call["words"][2] for call in walk.calls] == ["data", "precompute", "train", "evaluate", "report"]
    (adapter,) = (run / "adapters").iterdir()
    options = json.loads((adapter / "config.json").read_text())["options"]
    paper = {"method": "viker", "lambda": 0.05, "learning_rate": 5e-6, "per_device_train_batch_size": 2, "lora_r": 8,
             "lora_alpha": 16, "num_train_epochs": 1.0, "dtype": "bfloat16", "stop": False, "score_end_token": False,
             "processor": str(tiny_model_dir)}  # fmt: skip
    assert {name: options[name] for name in paper} == paper
    report = report_of(run)
    page = (run / "report" / "report.md").read_text()
    assert "Ours, not in the paper: num-references = 8" in page
    assert "30.4" in page, "the published number is beside ours"
    assert report["models"]
    assert_skips_everything(place.walk(*line, HF_HUB_OFFLINE="1"), 5)

    ideal = place.finish(*line, "--with-retain-only", "--finetune.model", str(tiny_model_dir), "--finetune.limit", "4",
                         "--finetune.num-train-epochs", "1", HF_HUB_OFFLINE="1")  # fmt: skip
    assert [call["torch"] for call in ideal.calls] == [False] * 4 + [False, True, True, False]
    assert "retain-only" in {model["name"] for model in report_of(run)["models"]}


# ---- the embedded benchmark ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("mini") / "a place")


@pytest.fixture(scope="module")
def first(place: Workplace) -> Walk:
    """The whole of `./pipeline.sh mllmu`, on twenty people and hardly any training."""
    return place.finish("mllmu", "--run", "./out", *SMALL, PROBE_SEES_LITTLE="1")


@pytest.mark.slow
def test_the_embedded_benchmark_ends_with_a_report(first: Walk, place: Workplace) -> None:
    run = place.folder / "out"
    assert first.out.startswith("mini, not comparable with published MLLMU numbers; real run: `--preset mllmu-10`\n")
    stages = {"data", "base", "vanilla", "precompute", "adapters", "evaluations", "retain-only", "report"}
    assert names(run) == stages
    assert all((run / name / "COMPLETE").exists() for name in stages - {"precompute", "adapters", "evaluations"})
    assert {name.partition("-")[0] for name in names(run / "adapters")} == {"ga", "viker", "recommended"}
    assert names(run / "evaluations") == {"vanilla", "retain-only", *names(run / "adapters")}
    report = report_of(run)
    assert report["embedded"]
    assert {model["name"] for model in report["models"]} == names(run / "evaluations")
    assert "mini, not comparable" in (run / "report" / "report.md").read_text().splitlines()[0]
    assert not list(run.rglob("*.parquet.tmp"))
    assert not list(run.rglob("cache.zarr")), "a run stores keys, never rows"


@pytest.mark.slow
def test_a_first_verdict_is_on_screen_before_the_ideal_is_trained(first: Walk) -> None:
    commands = [" ".join(call["words"][2:4]) for call in first.calls]
    assert commands.index("report --run") < commands.index("finetune retain-only")
    screens = first.out.split("report.md\n")
    assert len(screens) == 3
    for screen, models in zip(screens, (4, 5), strict=False):
        answers = re.findall(r"^  expected ", screen, flags=re.MULTILINE)
        rows = re.findall(r"^(?:vanilla|retain-only|ga-\w+|viker-\w+|recommended-\w+) ", screen, flags=re.MULTILINE)
        assert (len(answers), len(rows)) == (3, models)


@pytest.mark.slow
def test_the_same_line_again_does_nothing_says_so_and_never_imports_torch(first: Walk, place: Workplace) -> None:
    before = stamps(place.folder / "out")
    assert_skips_everything(place.walk("mllmu", "--run", "./out", *SMALL), len(first.calls))
    assert stamps(place.folder / "out") == before


def stamps(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_another_lambda_runs_train_evaluate_and_report_alone(first: Walk, place: Workplace) -> None:
    run = place.folder / "out"
    before, kept = names(run / "adapters"), stamps(run)
    walk = place.finish("mllmu", "--run", "./out", *SMALL, "--lambda", "0.2")
    assert {call["words"][2] for call in walk.calls if call["torch"]} <= {"train", "evaluate", "report"}
    after = names(run / "adapters")
    assert before < after
    assert {name.partition("-")[0] for name in after - before} == {"viker", "recommended"}
    assert len(adapters(run, "ga")) == 1, "ga reads no lambda: its adapter stays"
    assert "train: ga: complete, skipped" in walk.out
    changed = {path for path, stamp in stamps(run).items() if kept.get(path) != stamp}
    new = [str(run / folder / name) for folder in ("adapters", "evaluations") for name in after - before]
    assert {path for path in changed if not path.startswith((*new, str(run / "report")))} == set()
    assert {model["name"] for model in report_of(run)["models"]} >= after


@pytest.mark.slow
def test_another_seed_of_the_model_is_an_error_with_both_values(first: Walk, place: Workplace) -> None:
    before = stamps(place.folder / "out")
    walk = place.walk("mllmu", "--run", "./out", *SMALL, "--finetune.seed", "1")
    assert walk.code == 3
    (line,) = [line.split() for line in walk.err.splitlines() if line.startswith("  ")]
    assert line == ["seed", "there", "0", "asked", "1"]
    assert "Use another run name (--run NAME) to keep both, or --overwrite to replace it." in walk.err
    assert stamps(place.folder / "out") == before


@pytest.mark.slow
def test_other_people_are_an_error_too(first: Walk, place: Workplace) -> None:
    walk = place.walk("mllmu", "--run", "./out", *SMALL, "--data.people", "24")
    assert walk.code == 3
    assert re.search(r"people +there 20 +asked 24", walk.err)


@pytest.mark.slow
def test_another_run_name_keeps_both_and_overwrite_replaces(first: Walk, place: Workplace) -> None:
    before, other = stamps(place.folder / "out"), place.folder / "other"
    line = ("mllmu", "--run", "./other", *SMALL)
    place.finish(*line, "--finetune.seed", "1", "--skip", "retain-only", "--method", "ga", PROBE_SEES_LITTLE="1")
    assert stamps(place.folder / "out") == before
    assert {model["name"] for model in report_of(other)["models"]} == {"vanilla", *adapters(other, "ga")}

    replaced = place.finish(
        *line, "--finetune.seed", "2", "--method", "recommended", "--overwrite", PROBE_SEES_LITTLE="1"
    )
    for role in ("base", "vanilla", "retain-only"):
        assert json.loads((other / role / "viker_config.json").read_text())["options"]["seed"] == 2
    (old,) = adapters(other, "ga")
    assert re.search(rf"left out {old}: .* was made again after it", replaced.err), "it belongs to the replaced model"
    again = place.finish(*line, "--finetune.seed", "2", "--method", "recommended")
    assert [call["words"] for call in again.calls if call["torch"]] == []
    assert stamps(place.folder / "out") == before


@pytest.mark.slow
def test_a_stage_that_was_interrupted_is_started_again(first: Walk, place: Workplace) -> None:
    run = place.folder / "out"
    (name,) = adapters(run, "ga")
    (run / "adapters" / name / "COMPLETE").unlink()
    (run / "adapters" / name / "adapter_model.safetensors").write_bytes(b"half")
    shutil.rmtree(run / "evaluations" / name)
    again = place.finish("mllmu", "--run", "./out", *SMALL)
    assert {call["words"][2] for call in again.calls if call["torch"]} <= {"train", "evaluate", "report"}
    assert "train: ga: complete" not in again.out
    assert (run / "adapters" / name / "adapter_model.safetensors").stat().st_size > 1000
    assert (run / "evaluations" / name / "COMPLETE").exists()
