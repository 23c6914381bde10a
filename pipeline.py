"""Resolve the options of `pipeline.sh`: which stages run, and which arguments each of them gets.

The shell script tells the story and calls the stages; every decision is made here, once, before the first stage runs,
so that a misspelt option costs nothing. What is printed is shell assignments, quoted, for the script to evaluate.
A bare option belongs to `train`; others carry their stage (`--finetune.seed 1`); names are those of the stages' own
commands, asked of click.
"""

import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .cli import preset_names, read_preset

STAGES = ("data", "vanilla", "precompute", "train", "evaluate", "report", "retain-only")
SCENARIOS = ("mllmu", "own")
MINI_NOTICE = "mini, not comparable with published MLLMU numbers; real run: `--preset mllmu-10`"
# stage of an option -> where its click command is, and the subcommand that holds its options
_COMMANDS = {
    "data": (".data.commands", "make"), "finetune": (".train.finetune_commands", "vanilla"),
    "precompute": (".precompute.commands", None), "train": (".train.commands", None),
    "evaluate": (".evaluate.commands", None), "report": (".evaluate.report_commands", None),
}  # fmt: skip
_OWN_OPTIONS = {
    "--preset": "preset",
    "--run": "run",
    "--from": "from",
    "--only": "only",
    "--skip": "skip",
    "--model": "model",
}
_FLAGS = {"--dry-run": "dry_run", "--with-retain-only": "with_retain_only", "--overwrite": "overwrite"}


class Request:
    """What the user asked of pipeline.sh, option by option."""

    def __init__(self) -> None:
        self.own: dict[str, str] = {}
        self.flags: set[str] = set()
        self.forget: list[str] = []
        self.skip: list[str] = []
        self.stages: dict[str, list[str]] = {stage: [] for stage in _COMMANDS}


def stage_options(stage: str) -> dict[str, click.Option]:
    """Return the options of a stage's command by their long names (`--no-x` included)."""
    module, subcommand = _COMMANDS[stage]
    command: Any = import_module(module, __package__).command
    if subcommand is not None:
        command = command.commands[subcommand]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def read_arguments(arguments: Sequence[str]) -> Request:
    """Sort arguments to the pipeline itself and to stages.

    Raises:
        click.UsageError: an unknown option, with the list, or one without its value.
    """
    request, remaining = Request(), list(arguments)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise click.UsageError(f"pipeline.sh: expected an option, found {word!r}.")
        name, joined, value = word.partition("=")
        values = [value] if joined else remaining
        if name in _FLAGS:
            request.flags.add(_FLAGS[name])
        elif name == "--forget":
            request.forget.append(_value(name, values))
        elif name == "--skip":
            request.skip.append(_stage_name(name, _value(name, values)))
        elif name in _OWN_OPTIONS:
            request.own[_OWN_OPTIONS[name]] = _value(name, values)
        else:
            stage, option = _stage_option(name)
            request.stages[stage].append(option)
            if not stage_options(stage)[option].is_flag:
                request.stages[stage].append(_value(name, values))
    for name in ("from", "only"):
        if name in request.own:
            _stage_name(f"--{name}", request.own[name])
    return request


def _value(name: str, values: list[str]) -> str:
    if not values:
        raise click.UsageError(f"pipeline.sh: expected a value after {name}, found none.")
    return values.pop(0)


def _stage_name(option: str, value: str) -> str:
    if value not in STAGES:
        raise click.UsageError(f"pipeline.sh {option}: expected one of {', '.join(STAGES)}, found {value!r}.")
    return value


def _stage_option(word: str) -> tuple[str, str]:
    stage, dot, option = word.removeprefix("--").partition(".")
    if not dot:
        stage, option = "train", stage
    if stage in _COMMANDS and f"--{option}" in stage_options(stage):
        return stage, f"--{option}"
    elsewhere = [f"--{other}.{option}" for other in _COMMANDS if f"--{option}" in stage_options(other)]
    hint = f" Did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    known = (
        ", ".join(sorted(stage_options(stage)))
        if stage in _COMMANDS
        else ", ".join(f"--{name}.OPTION" for name in _COMMANDS)
    )
    raise click.UsageError(f"pipeline.sh: unknown option {word}.{hint}\nKnown: {known}")


def chosen_stages(request: Request, *, has_retain_only: bool) -> list[str]:
    """Return the stages to run, in order."""
    stages = list(STAGES if has_retain_only else STAGES[:-1])
    if "only" in request.own:
        stages = [stage for stage in stages if stage == request.own["only"]]
    if "from" in request.own:
        first = STAGES.index(request.own["from"])
        stages = [stage for stage in stages if STAGES.index(stage) >= first]
    return [stage for stage in stages if stage not in request.skip]


def resolve(scenario: str, where: str | None, request: Request, caller: Path) -> dict[str, str | list[str]]:
    """Return the shell variables of a run."""
    preset_name = request.own.get("preset", "mini" if scenario == "mllmu" else "own")
    preset = read_preset(preset_name)
    settings: dict[str, Any] = preset.get("pipeline", {})
    source = settings.get("source", "")
    model = request.own.get("model", settings.get("model", ""))
    if scenario == "own":
        if where is None or not request.forget or not model:
            raise click.UsageError(
                "pipeline.sh own: expected DIR --forget ID [--forget ID] --model M, found less. Name them all."
            )
        source = str((caller / where).resolve())
    if model and (caller / model).is_dir():
        model = str((caller / model).resolve())
    source = _override(request.stages["data"], "--source", source, caller)
    name = request.own.get("run") or f"{scenario}-{Path(preset_name).stem}"
    has_retain_only = bool(settings.get("trains_vanilla")) or "with_retain_only" in request.flags
    run = str(Path("runs") / name) if "/" not in name else name
    trains_vanilla = bool(settings.get("trains_vanilla")) and not request.own.get("model")
    base = settings.get("base", model)
    forget = [word for person in request.forget for word in ("--forget", person)]
    overwrite = ["--overwrite"] if "overwrite" in request.flags else []
    arguments = {f"{stage.upper()}_ARGS": [*words, *overwrite] for stage, words in request.stages.items()}
    arguments["DATA_ARGS"] += forget
    return {
        "PRESET": preset_name, "RUN": run, "SOURCE": source, "MODEL": str(model or f"{run}/vanilla"), "BASE": str(base),
        "BASE_FOR_RETAIN": f"{run}/base" if trains_vanilla else str(base),
        "POOL": str(settings.get("pool", "")).replace("{data}", f"{run}/data"), "STAGES": " ".join(chosen_stages(request, has_retain_only=has_retain_only)),
        "TRAINS_VANILLA": "yes" if trains_vanilla else "",
        "RETAIN_ROWS": "yes" if settings.get("retain_rows", True) else "",
        "NOTICE": MINI_NOTICE if preset_name == "mini" else str(settings.get("notice", "")), "DRY_RUN": "yes" if "dry_run" in request.flags else "",
        **arguments,
    }  # fmt: skip


def _override(words: list[str], option: str, value: str, caller: Path) -> str:
    """Take an option out of a stage's words and return its value, else the given one."""
    if option not in words:
        return value
    index = words.index(option)
    found = words[index + 1]
    del words[index : index + 2]
    return str((caller / found).resolve()) if (caller / found).is_dir() else found


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.option(
    "--caller", type=click.Path(path_type=Path), default=Path(), help="The directory pipeline.sh was called from."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(caller: Path, arguments: tuple[str, ...]) -> None:
    """Print pipeline.sh's variables."""
    if not arguments or arguments[0] not in SCENARIOS:
        found = arguments[0] if arguments else "nothing"
        raise click.UsageError(
            f"pipeline.sh: expected {' or '.join(SCENARIOS)}, found {found}. Presets: {', '.join(preset_names())}."
        )
    scenario, rest = arguments[0], list(arguments[1:])
    where = rest.pop(0) if rest and not rest[0].startswith("--") else None
    if scenario == "mllmu" and where is not None:
        raise click.UsageError(f"pipeline.sh mllmu: expected options, found {where!r}.")
    for name, value in resolve(scenario, where, read_arguments(rest), caller).items():
        text = shlex.quote(value) if isinstance(value, str) else f"({' '.join(map(shlex.quote, value))})"
        click.echo(f"{name}={text}")
