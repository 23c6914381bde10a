"""pipeline.sh: every option finds its stage or is refused, presets hold real options, and the script runs anywhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner
from viker.cli import COMMANDS, preset_names, read_preset, viker
from viker.data.example import DataError
from viker.data.options import as_defaults
from viker.pipeline import STAGES, read_arguments, resolve, stage_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "pipeline.sh"
BIN = Path(sys.executable).parent
WITHOUT_RETAIN_ONLY = list(STAGES[:-1])
REAL = [name for name in preset_names() if name.startswith("mllmu")]


def resolved(*arguments: str, scenario: str = "mllmu", where: str | None = None, caller: Path = Path("/")) -> Any:
    return resolve(scenario, where, read_arguments(arguments, caller), caller)


def refusal(*arguments: str, **options: Any) -> str:
    with pytest.raises(click.UsageError) as error:
        resolved(*arguments, **options)
    return error.value.message


def shell(
    *arguments: str, cwd: Path, script: Path = SCRIPT, path: Sequence[Path | str] = (BIN,), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run pipeline.sh with viker on the PATH and no environment active."""
    keep = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    search = os.pathsep.join([*map(str, path), "/usr/bin", "/bin"])
    return subprocess.run(
        ["bash", str(script), *arguments], cwd=cwd, env={**keep, "PATH": search, **environment}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


# ---- options find their stage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "variable", "arrives"),
    [
        (["--lambda", "0.2"], "TRAIN_ARGS", ["--lambda", "0.2"]),
        (["--lambda=0.2"], "TRAIN_ARGS", ["--lambda", "0.2"]),
        (["--no-stop"], "TRAIN_ARGS", ["--no-stop"]),
        (["--method", "ga", "--method", "viker"], "TRAIN_ARGS", ["--method", "ga", "--method", "viker"]),
        (["--seed", "3"], "TRAIN_ARGS", ["--seed", "3"]),
        (["--train.seed", "3"], "TRAIN_ARGS", ["--seed", "3"]),
        (["--finetune.seed", "1"], "FINETUNE_ARGS", ["--seed", "1"]),
        (["--finetune.augment"], "FINETUNE_ARGS", ["--augment"]),
        (["--precompute.top-k", "128"], "PRECOMPUTE_ARGS", ["--top-k", "128"]),
        (["--data.people", "20"], "DATA_ARGS", ["--people", "20"]),
        (["--data.limit", "3"], "DATA_ARGS", ["--limit", "3"]),
        (["--evaluate.limit", "2"], "EVALUATE_ARGS", ["--limit", "2"]),
        (["--forget", "003", "--forget", "007"], "DATA_ARGS", ["--forget", "003", "--forget", "007"]),
    ],
    ids=str,
)
def test_a_bare_option_is_trains_and_others_carry_their_stage(
    words: list[str], variable: str, arrives: list[str]
) -> None:
    found = resolved(*words)
    assert found[variable] == arrives
    arrays = {name for name, value in found.items() if isinstance(value, list) and value}
    assert arrays - {"MORE_ROWS_ARGS", "MORE_ROWS"} == {variable}


def test_the_retain_rows_are_made_like_the_others_but_without_what_means_references() -> None:
    found = resolved("--precompute.top-k", "128", "--precompute.num-references", "2", "--precompute.limit", "5",
                     "--precompute.engine", "naive", "--overwrite")  # fmt: skip
    assert found["MORE_ROWS_ARGS"] == ["--top-k", "128", "--engine", "naive", "--overwrite"]


def test_retain_rows_are_made_only_for_methods_that_read_them() -> None:
    retain = ["--teacher self --split retain-seen"]
    assert resolved()["MORE_ROWS"] == retain
    assert resolved("--method", "viker")["MORE_ROWS"] == []
    assert resolved("--method", "viker", "--retain", "1")["MORE_ROWS"] == retain
    assert resolved("--retain", "0")["MORE_ROWS"] == []
    assert resolved("--method", "npo", "--method", "vgid")["MORE_ROWS"] == [
        "--teacher self --split forget --top-k 0", "--teacher noise --num-references 1 --split forget", *retain,
    ]  # fmt: skip


def test_overwrite_reaches_every_stage() -> None:
    found = resolved("--overwrite")
    assert all(value[-1] == "--overwrite" for name, value in found.items() if name.endswith("_ARGS"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "--data.device",
            [
                "unknown option --data.device",
                "Did you mean --finetune.device or --precompute.device or --train.device or --evaluate.device?",
            ],
        ),
        ("--people", ["unknown option --people", "Did you mean --data.people?", "--lambda", "--only"]),
        ("--engine", ["Did you mean --precompute.engine or --evaluate.engine?"]),
        ("--num-references", ["Did you mean --precompute.num-references or --train.num-references?"]),
        ("--source", ["Did you mean --data.source?"]),
        ("--batch-size", ["Did you mean --evaluate.batch-size?"]),
        ("--augment", ["Did you mean --finetune.augment?"]),
        ("--lamda", ["unknown option --lamda.\n", "--lambda"]),
        ("--finetune.lambda", ["Did you mean --train.lambda?", "--learning-rate"]),
        ("--tune.seed", ["--data.OPTION, --finetune.OPTION, --precompute.OPTION, --train.OPTION"]),
        ("--data", ["unknown option --data.\n", "--data.source"]),
        ("--output", ["unknown option --output"]),
    ],
)
def test_an_unknown_option_is_refused_with_the_list_and_where_it_exists(word: str, says: list[str]) -> None:
    message = refusal(word, "1")
    for part in (*says, "Known: "):
        assert part in message


def test_the_list_names_every_option_of_the_stage_asked() -> None:
    listed = set(re.findall(r"--[\w.-]+", refusal("--data.device", "3").partition("Known: ")[2]))
    assert set(stage_options("data")) <= listed
    assert not {"--lambda", "--top-k"} & listed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lambda"], "expected a value after --lambda, found none"),
        (["--overwrite=yes"], "expected --overwrite without a value"),
        (["--no-stop=1"], "expected --no-stop without a value"),
        (["lambda", "0.2"], "expected an option, found 'lambda'"),
        (["--only", "trian"], "--only: expected one of data, vanilla"),
        (["--skip", "x"], "--skip: expected one of"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    assert says in refusal(*words)


# ---- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        ([], list(STAGES)),
        (["--from", "train"], ["train", "evaluate", "report", "retain-only"]),
        (["--only", "report"], ["report"]),
        (["--skip", "retain-only", "--skip", "data"], ["vanilla", "precompute", "train", "evaluate", "report"]),
        (["--from", "train", "--skip", "report"], ["train", "evaluate", "retain-only"]),
    ],
    ids=str,
)
def test_from_only_and_skip_choose_stages_and_keep_the_order(words: list[str], stages: list[str]) -> None:
    assert resolved(*words)["STAGES"].split() == stages


def test_something_is_seen_before_the_ideal_is_trained() -> None:
    assert STAGES.index("report") < STAGES.index("retain-only")


@pytest.mark.parametrize("preset", REAL)
def test_real_presets_train_the_ideal_only_when_asked(preset: str) -> None:
    assert resolved("--preset", preset)["STAGES"].split() == [s for s in WITHOUT_RETAIN_ONLY if s != "vanilla"]
    assert resolved("--preset", preset, "--with-retain-only")["STAGES"].split()[-1] == "retain-only"


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "mllmu-10", "--only", "retain-only"],
        ["--preset", "mllmu-10", "--only", "vanilla"],
        ["--only", "train", "--skip", "train"],
    ],
)
def test_a_choice_that_leaves_no_stage_is_an_error_not_silence(words: list[str]) -> None:
    assert "expected at least one stage to run, found none" in refusal(*words)


# ---- scenarios and overrides -----------------------------------------------------------------------------------------


def test_mini_says_first_what_it_is() -> None:
    notice = "mini, not comparable with published MLLMU numbers; real run: `--preset mllmu-10`"
    assert resolved()["NOTICE"] == notice


def test_own_needs_a_folder_somebody_to_forget_and_a_model() -> None:
    own = {"scenario": "own", "where": "people"}
    for words in ([], ["--forget", "x"], ["--model", "m"]):
        assert "expected DIR --forget ID [--forget ID] --model M" in refusal(*words, **own)
    complete = resolved("--forget", "x", "--model", "org/model", **own)
    assert (complete["SOURCE"], complete["MODEL"], complete["POOL"]) == ("people", "org/model", "patterns")
    assert "vanilla" not in complete["STAGES"]
    assert "found --data.source too" in refusal("--forget", "x", "--model", "m", "--data.source", "d", **own)


def test_the_ideal_of_ones_own_model_needs_a_base_that_never_knew_them() -> None:
    words = ["--forget", "x", "--model", "m", "--with-retain-only"]
    own = {"scenario": "own", "where": "people"}
    assert "expected --finetune.model M" in refusal(*words, **own)
    assert "retain-only" in resolved(*words, "--finetune.model", "base", **own)["STAGES"]


def test_a_model_named_replaces_the_presets_model_and_its_processor(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    model = str(tmp_path / "tiny")
    found = resolved("--preset", "mllmu-10", "--model", "tiny", "--data.source", "org/data", caller=tmp_path)
    assert (found["MODEL"], found["SOURCE"]) == (model, "org/data")
    for stage in ("FINETUNE", "PRECOMPUTE", "TRAIN", "EVALUATE", "MORE_ROWS"):
        assert found[f"{stage}_ARGS"] == ["--processor", model], stage
    kept = resolved("--preset", "mllmu-10", "--model", "tiny", "--train.processor", "p", caller=tmp_path)
    assert kept["TRAIN_ARGS"] == ["--processor", "p"]
    mini = resolved("--model", "tiny", caller=tmp_path)
    assert (mini["TRAIN_ARGS"], mini["TRAINS_VANILLA"]) == ([], "")
    assert "vanilla" not in mini["STAGES"]


def test_paths_are_the_callers(tmp_path: Path) -> None:
    for name in ("data", "model", "pool", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "ids.txt").write_text("003\n")
    (tmp_path / "mine.toml").write_text('[pipeline]\nsource = "mini"\n')
    found = resolved(
        "--preset", "mine.toml", "--model", "model", "--data.source", "data", "--precompute.pool", "pool", "--run",
        "./a run", "--forget", "ids.txt", "--forget", "007", "--cache", "cache", caller=tmp_path,
    )  # fmt: skip
    here = str(tmp_path)
    assert found["PRESET"] == f"{here}/mine.toml"
    assert (found["MODEL"], found["SOURCE"], found["RUN"]) == (f"{here}/model", f"{here}/data", f"{here}/a run")
    assert found["PRECOMPUTE_ARGS"] == ["--pool", f"{here}/pool"]
    assert found["TRAIN_ARGS"] == ["--cache", f"{here}/cache"]
    assert found["DATA_ARGS"] == ["--forget", f"{here}/ids.txt", "--forget", "007"]


def test_a_run_is_named_or_named_after_scenario_and_preset() -> None:
    assert resolved()["RUN"] == "runs/mllmu-mini"
    assert resolved("--run", "other")["RUN"] == "runs/other"
    assert resolved("--run", "/disk/x")["RUN"] == "/disk/x"


def test_the_pool_lies_in_the_runs_data() -> None:
    assert resolved("--run", "/disk/x")["POOL"] == "/disk/x/data/pools/people"


def test_controls_of_a_preset_are_asked_unless_others_are_named() -> None:
    assert resolved("--run", "/disk/x")["CONTROLS"] == "/disk/x/data/controls"
    assert resolved("--run", "/disk/x", "--evaluate.controls", "others")["CONTROLS"] == ""
    assert resolved("--preset", "mllmu-10")["CONTROLS"] == ""


def test_clear_walks_the_same_stages_on_its_own_preset() -> None:
    found = resolved(scenario="clear")
    assert (found["PRESET"], found["SOURCE"], found["RUN"]) == ("mini-clear", "mini-clear", "runs/clear-mini-clear")
    assert str(found["NOTICE"]).startswith("mini-clear, not comparable")
    real = resolved("--preset", "clear-10", scenario="clear")
    assert (real["SOURCE"], real["MODEL"]) == ("therem/CLEAR", "therem/llava-1.5-7b-CLEAR-finetune")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "expected mllmu, clear, own, found nothing"), (("clearr",), "found clearr"), (("mllmu", "x"), "found 'x'")],
)
def test_a_scenario_that_does_not_exist_is_refused(arguments: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(viker, ["pipeline", *arguments])
    assert result.exit_code == 2
    assert says in result.stderr


# ---- presets ---------------------------------------------------------------------------------------------------------


def command_of(stage: str) -> click.Command:
    found = viker.get_command(click.Context(viker), stage)  # type: ignore[attr-defined]
    assert isinstance(found, click.Command)
    return found


def convert_all(command: click.Command, defaults: Mapping[str, Any]) -> None:
    """Convert every setting as click will when the command is called."""
    context = click.Context(command)
    for option in command.params:
        if option.name in defaults:
            option.type_cast_value(context, defaults[option.name])
    for name, subcommand in (command.commands if isinstance(command, click.Group) else {}).items():
        convert_all(subcommand, defaults.get(name, {}))


@pytest.mark.parametrize("name", preset_names())
def test_every_setting_of_a_preset_is_an_option_with_a_value_it_takes(name: str) -> None:
    for stage, settings in read_preset(name).items():
        if stage != "pipeline":
            convert_all(command_of(stage), as_defaults(command_of(stage), settings, f"{name}, {stage}"))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_tells_the_pipeline_only_what_it_reads(name: str) -> None:
    known = {"source", "model", "base", "pool", "controls", "trains_vanilla", "notice"}
    assert read_preset(name).get("pipeline", {}).keys() <= known


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nlamda = 0.2", "expected options of the command, found 'lamda'. Known are"),
        ("[finetune.vanilla]\nepochs = 3", "found 'epochs'"),
        ("[finetune.vanila]\nlora = true", "found 'vanila'"),
        ("[trian]\nlambda = 0.2", "expected tables named like commands, or [pipeline], found trian"),
        ("[train\n", "expected TOML"),
    ],
)
def test_a_typo_in_a_preset_is_an_error(text: str, says: str, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(text)
    stage = ["finetune", "vanilla", "--output", "x"] if "finetune" in text else ["train"]
    result = CliRunner().invoke(viker, ["--preset", str(preset), *stage, "--data", "x", "--model", "y"])
    assert isinstance(result.exception, DataError)
    assert says in str(result.exception)


def test_what_a_preset_says_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    from viker.train import commands, finetune_commands

    seen: dict[str, Any] = {}
    monkeypatch.setattr(commands, "_train_one", lambda ctx, options, method: seen.update(options, method=method))
    monkeypatch.setattr(finetune_commands, "_run", lambda ctx, role, part: seen.update(ctx.params))
    given = ["--data", "d", "--model", "m"]
    for name, weight in (("mllmu-5", 0.05), ("mllmu-10", 0.05), ("mllmu-15", 0.5)):
        invoke = CliRunner().invoke(viker, ["--preset", name, "train", "--run", "r", *given])
        assert invoke.exit_code == 0, invoke.output
        method = seen["method"]
        assert (method.name, method.settings["lambda"], seen["stop"]) == ("viker", weight, False)
        CliRunner().invoke(viker, ["--preset", name, "train", "--run", "r", *given, "--lambda", "0.7"])
        assert seen["method"].settings["lambda"] == 0.7, "the line wins"
        CliRunner().invoke(viker, ["--preset", name, "finetune", "retain-only", "--output", "o", *given])
        assert (seen["use_lora"], seen["learning_rate"], seen["score_end_token"]) == (True, 2e-5, False)


# ---- the script ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spaced(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    return folder


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder with a `viker` that resolves options and writes down every other call instead of doing it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = f"exec {shlex.quote(sys.executable)} -m viker"
    (folder / "viker").write_text(
        f'#!/bin/sh\nif [ "$1" = pipeline ]; then {real} "$@"; fi\n'
        f'for word in "$@"; do printf "<%s>" "$word" >>{shlex.quote(str(tmp_path / "calls"))}; done\n'
        f"echo >>{shlex.quote(str(tmp_path / 'calls'))}\n"
    )
    (folder / "viker").chmod(0o755)
    return folder


def test_a_dry_run_prints_every_command_resolved_and_runs_nothing(spaced: Path, recorded: Path) -> None:
    run = spaced / "my run"
    line = ["mllmu", "--run", "./my run", "--lambda", "0.2", "--precompute.top-k", "128"]
    dry = shell(*line, "--dry-run", cwd=spaced, path=[recorded])
    assert dry.returncode == 0, dry.stderr
    assert dry.stderr == ""
    assert not (recorded.parent / "calls").exists()
    assert list(spaced.iterdir()) == []
    notice, *commands = dry.stdout.splitlines()
    assert notice.startswith("mini, not comparable")
    printed = [shlex.split(command) for command in commands]
    assert [words[3:5] for words in printed] == [
        ["data", "make"],
        ["finetune", "base"],
        ["finetune", "vanilla"],
        ["precompute", "--run"],
        ["precompute", "--run"],
        ["train", "--run"],
        ["evaluate", "--run"],
        ["report", "--run"],
        ["finetune", "retain-only"],
        ["evaluate", "--run"],
        ["report", "--run"],
    ]
    assert printed[5][-2:] == ["--lambda", "0.2"]
    assert printed[3][-4:] == ["--pool", f"{run}/data/pools/people", "--top-k", "128"]
    shell(*line, cwd=spaced, path=[recorded])
    called = [re.findall("<(.*?)>", call) for call in (recorded.parent / "calls").read_text().splitlines()]
    assert called == [words[1:] for words in printed], "what is printed is what runs"


def test_a_printed_command_can_be_pasted(spaced: Path) -> None:
    dry = shell("mllmu", "--run", "./my run", "--only", "train", "--dry-run", cwd=spaced)
    command = dry.stdout.splitlines()[-1]
    environment = {**os.environ, "PATH": f"{BIN}:/usr/bin:/bin"}
    pasted = subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=spaced, env=environment, text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert f"train: would train ga into {spaced}/my run/adapters/ga-" in pasted.stdout, pasted.stderr


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (["mllmu", "--lamda", "1"], 2, "unknown option --lamda"),
        (["mllmu", "--preset", "nope"], 1, "expected one of clear-10, mini, mini-clear, mini-hard, mini-hard-200, "),
        ([], 2, "expected mllmu, clear, own"),
    ],
)
def test_the_script_ends_with_the_stages_exit_code_before_anything_runs(
    line: list[str], code: int, says: str, tmp_path: Path, recorded: Path
) -> None:
    result = shell(*line, cwd=tmp_path, path=[recorded])
    assert (result.returncode, result.stdout) == (code, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "calls").exists()


def test_the_first_failing_stage_ends_the_run_with_its_code(tmp_path: Path, recorded: Path) -> None:
    with (recorded / "viker").open("a") as script:
        script.write('case " $* " in *" precompute "*) exit 3 ;; esac\n')
    assert shell("mllmu", cwd=tmp_path, path=[recorded]).returncode == 3
    assert "<train>" not in (tmp_path / "calls").read_text()


def test_an_active_environment_is_never_installed_into(tmp_path: Path) -> None:
    copy = tmp_path / "clone" / "pipeline.sh"
    copy.parent.mkdir()
    shutil.copy(SCRIPT, copy)
    if shutil.which("viker", path="/usr/bin:/bin"):
        pytest.skip("viker is installed system-wide")
    for active in ({"VIRTUAL_ENV": "/some/venv"}, {"CONDA_PREFIX": "/some/conda"}):
        result = shell("mllmu", cwd=tmp_path, script=copy, path=[], **active)
        assert (result.returncode, result.stdout) == (1, "")
        assert "pip install -c constraints.txt -e ." in result.stderr
    assert list(copy.parent.iterdir()) == [copy]


def test_without_one_it_makes_its_own_and_uses_it_from_then_on(tmp_path: Path, recorded: Path) -> None:
    clone = tmp_path / "a clone"
    (clone / ".ci").mkdir(parents=True)
    shutil.copy(SCRIPT, clone)
    (clone / ".ci" / "install").write_text(
        f'mkdir -p "$1/bin"; cp {shlex.quote(str(recorded / "viker"))} "$1/bin/"; echo installed\n'
    )
    line = ("mllmu", "--only", "train", "--dry-run")
    first, second = (shell(*line, cwd=tmp_path, script=clone / "pipeline.sh", path=[]) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout.startswith("installed\n")
    assert "installed" not in second.stdout


def script_lines() -> list[str]:
    return [line for line in SCRIPT.read_text().splitlines() if not line.lstrip().startswith("#")]


def test_help_needs_no_environment(tmp_path: Path) -> None:
    told = shell("--help", cwd=tmp_path, path=[])
    assert told.returncode == 0
    assert told.stdout.startswith("Make a multimodal LLM forget some people")
    assert all(f"./pipeline.sh {scenario}" in told.stdout for scenario in ("mllmu", "clear", "own"))
    assert "set -euo" not in told.stdout


def test_the_script_is_valid_and_executable() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)
    assert "set -euo pipefail" in script_lines()


@pytest.mark.parametrize(
    "modern",
    [
        r"declare -[Ag]",
        r"local -n",
        r"\b(mapfile|readarray|coproc)\b",
        r"\$\{\w+(\^|,)",
        r"\$\{\w+@",
        r"&>>",
        r"\|&",
        r"\[\[? -v ",
        r"\$\{\w+\[-",
        r";;?&",
        r"printf '%\(",
        r"\bwait -n\b",
        r"\$EPOCH",
        r"\{fd\}",
        r"\*\*/",
    ],
)
def test_the_script_needs_nothing_newer_than_bash_3_2(modern: str) -> None:
    assert [line for line in script_lines() if re.search(modern, line)] == []


def test_an_array_that_may_be_empty_is_guarded() -> None:
    guarded = re.compile(r'\$\{(\w+)\[@\]\+"\$\{\1\[@\]\}"\}')
    for line in script_lines():
        assert "[@]" not in guarded.sub("", line), f"bash 3.2 calls an empty array unset under `set -u`: {line}"


def test_every_array_and_variable_the_script_reads_is_set_by_the_pipeline() -> None:
    read = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", "\n".join(script_lines())))
    own = {"BASH_SOURCE", "PWD", "PATH", "VIRTUAL_ENV", "CONDA_PREFIX"}
    assert read - own == resolved().keys()


def test_every_stage_of_the_pipeline_is_a_command() -> None:
    assert set(re.findall(r"^ *stage (\w+)", SCRIPT.read_text(), flags=re.MULTILINE)) <= COMMANDS.keys()
    assert set(tomllib.loads((ROOT / "presets" / "mini.toml").read_text())) - {"pipeline"} <= COMMANDS.keys()
