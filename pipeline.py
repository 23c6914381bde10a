"""Resolve the options of `pipeline.sh`: which stages run, and which arguments each of them gets.

The shell script tells the story and calls the stages; every decision is made here, once, before the first stage runs,
so that a misspelt option costs nothing. What is printed is shell assignments, quoted, for the script to evaluate.
A bare option belongs to `train`; others carry their stage (`--finetune.seed 1`); names are those of the stages' own
commands, asked of click. Paths are the caller's: the script itself works beside the code.
"""

import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .cli import preset_names, read_preset

STAGES = ("data", "vanilla", "precompute", "train", "evaluate", "report", "retain-only")
# scenario -> the preset it has without --preset
SCENARIOS = {"mllmu": "mini", "clear": "mini-clear", "own": "own"}
# stage of an option -> where its click command is, and the subcommand that holds its options
_COMMANDS = {
    "data": (".data.commands", "make"), "finetune": (".train.finetune_commands", "vanilla"),
    "precompute": (".precompute.commands", None), "train": (".train.commands", None),
    "evaluate": (".evaluate.commands", None), "report": (".evaluate.report.commands", None),
}  # fmt: skip
_OWN_OPTIONS = {
    "--preset": "preset",
    "--run": "run",
    "--from": "from",
    "--only": "only",
    "--model": "model",
    "--data.source": "source",
}
_FLAGS = {"--dry-run": "dry_run", "--with-retain-only": "with_retain_only", "--overwrite": "overwrite"}
_REPEATABLE = ("--forget", "--skip")
_GIVEN_BY_THE_RUN = ("--data", "--run", "--output")
# Of the options of `precompute`, those that mean the forget people's references: other rows do not get them.
_OF_REFERENCES = (
    "--teacher", "--split", "--answers", "--instruction", "--pool", "--num-references", "--shared-references",
    "--skip-text", "--seed", "--limit",
)  # fmt: skip
# Options of `train` for a teacher run live; bare, whoever gives them means the rows that are cached.
_OF_A_LIVE_TEACHER = ("--pool", "--num-references", "--shared-references")
_HAS_PROCESSOR = ("finetune", "precompute", "train", "evaluate")

Words = tuple[str, ...]  # an option and its value, or a flag alone


class Request:
    """What the user asked of pipeline.sh, option by option."""

    def __init__(self) -> None:
        self.own: dict[str, str] = {}
        self.flags: set[str] = set()
        self.forget: list[str] = []
        self.skip: list[str] = []
        self.stages: dict[str, list[Words]] = {stage: [] for stage in _COMMANDS}

    def names(self, stage: str, option: str) -> bool:
        """Tell whether an option of a stage was given."""
        return any(words[0] == option for words in self.stages[stage])


def stage_options(stage: str) -> dict[str, click.Option]:
    """Return the options of a stage's command by their long names (`--no-x` included)."""
    module, subcommand = _COMMANDS[stage]
    command: Any = import_module(module, __package__).command
    if subcommand is not None:
        command = command.commands[subcommand]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    named = {name: option for option in options for name in (*option.opts, *option.secondary_opts)}
    return {name: option for name, option in named.items() if name not in _GIVEN_BY_THE_RUN}


def read_arguments(arguments: Sequence[str], caller: Path = Path()) -> Request:
    """Sort arguments to the pipeline itself and to stages; a relative path becomes the caller's.

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
            _refuse_value(name, joined)
            request.flags.add(_FLAGS[name])
        elif name == "--forget":
            request.forget.append(_from_caller(_value(name, values), caller))
        elif name == "--skip":
            request.skip.append(_stage_name(name, _value(name, values)))
        elif name in _OWN_OPTIONS:
            request.own[_OWN_OPTIONS[name]] = _value(name, values)
        else:
            stage, option = _stage_option(name)
            if stage_options(stage)[option].is_flag:
                _refuse_value(name, joined)
                request.stages[stage].append((option,))
            else:
                value = _value(name, values)
                is_path = _takes_path(stage_options(stage)[option])
                request.stages[stage].append((option, _from_caller(value, caller) if is_path else value))
    for name in ("from", "only"):
        if name in request.own:
            _stage_name(f"--{name}", request.own[name])
    return request


def _value(name: str, values: list[str]) -> str:
    if not values:
        raise click.UsageError(f"pipeline.sh: expected a value after {name}, found none.")
    return values.pop(0)


def _refuse_value(name: str, joined: str) -> None:
    if joined:
        raise click.UsageError(f"pipeline.sh: expected {name} without a value, found one. Leave it out.")


def _takes_path(option: click.Option) -> bool:
    words = (option.metavar or "").split("|")
    return isinstance(option.type, click.Path) or bool({"DIR", "PATH", "FILE"} & set(words))


def _from_caller(value: str, caller: Path) -> str:
    """Return a path that exists where the caller is as an absolute one; anything else (a hub id, a name) as it is."""
    return str((caller / value).resolve()) if value and (caller / value).exists() else value


def _stage_name(option: str, value: str) -> str:
    if value not in STAGES:
        raise click.UsageError(f"pipeline.sh {option}: expected one of {', '.join(STAGES)}, found {value!r}.")
    return value


def _stage_option(word: str) -> tuple[str, str]:
    stage, dot, option = word.removeprefix("--").partition(".")
    if not dot:
        stage, option = "train", stage
    is_meant = dot or f"--{option}" not in _OF_A_LIVE_TEACHER
    if is_meant and stage in _COMMANDS and f"--{option}" in stage_options(stage):
        return stage, f"--{option}"
    elsewhere = [f"--{other}.{option}" for other in _COMMANDS if f"--{option}" in stage_options(other)]
    elsewhere += [name for name in _OWN_OPTIONS if name.endswith(f".{option}")]
    hint = f" Did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    if stage not in _COMMANDS:
        known = [f"--{name}.OPTION" for name in _COMMANDS]
    else:
        of_pipeline = [*_OWN_OPTIONS, *_FLAGS, *_REPEATABLE] if not dot or stage == "data" else []
        known = sorted({*stage_options(stage), *of_pipeline})
    raise click.UsageError(f"pipeline.sh: unknown option {word}.{hint}\nKnown: {', '.join(known)}")


def chosen_stages(request: Request, *, trains_vanilla: bool = True, has_retain_only: bool) -> list[str]:
    """Return the stages to run, in order.

    Raises:
        click.UsageError: what was asked for leaves none.
    """
    absent = {"vanilla": not trains_vanilla, "retain-only": not has_retain_only}
    possible = [stage for stage in STAGES if not absent.get(stage)]
    stages = possible
    if "only" in request.own:
        stages = [stage for stage in stages if stage == request.own["only"]]
    if "from" in request.own:
        first = STAGES.index(request.own["from"])
        stages = [stage for stage in stages if STAGES.index(stage) >= first]
    stages = [stage for stage in stages if stage not in request.skip]
    if not stages:
        hint = "" if has_retain_only else " (retain-only with --with-retain-only)"
        raise click.UsageError(
            f"pipeline.sh: expected at least one stage to run, found none. This run has {', '.join(possible)}{hint}."
        )
    return stages


def resolve(scenario: str, where: str | None, request: Request, caller: Path) -> dict[str, str | list[str]]:
    """Return the shell variables of a run."""
    preset_name = request.own.get("preset", SCENARIOS[scenario])
    if preset_name.endswith(".toml"):
        preset_name = str((caller / preset_name).resolve())
    preset = read_preset(preset_name)
    settings: dict[str, Any] = preset.get("pipeline", {})
    source = _source(scenario, where, request, str(settings.get("source", "")), caller)
    asked_model = _from_caller(request.own.get("model", ""), caller)
    model = asked_model or str(settings.get("model", ""))
    of_what = Path(source).name if scenario == "own" else scenario
    name = request.own.get("run") or f"{of_what}-{Path(preset_name).stem}"
    run = str((caller / name).resolve()) if "/" in name else str(Path("runs") / name)
    trains_vanilla = bool(settings.get("trains_vanilla")) and not asked_model
    has_retain_only = trains_vanilla or "with_retain_only" in request.flags
    base = _base(settings, request, trains_vanilla=trains_vanilla, has_retain_only=has_retain_only)
    if asked_model:
        _use_processor_of(asked_model, preset, request)
    overwrite = [("--overwrite",)] if "overwrite" in request.flags else []
    request.stages["data"] += [("--forget", person) for person in request.forget]
    arguments = {f"{stage.upper()}_ARGS": _flat([*words, *overwrite]) for stage, words in request.stages.items()}
    of_more = [words for words in request.stages["precompute"] if words[0] not in _OF_REFERENCES]
    return {
        "PRESET": preset_name,
        "RUN": run,
        "SOURCE": source,
        "MODEL": model or f"{run}/vanilla",
        "BASE": base,
        "BASE_FOR_RETAIN": f"{run}/base" if trains_vanilla else base,
        "POOL": str(settings.get("pool", "")).replace("{data}", f"{run}/data"),
        "CONTROLS": _controls(settings, request, run),
        "STAGES": " ".join(chosen_stages(request, trains_vanilla=trains_vanilla, has_retain_only=has_retain_only)),
        "TRAINS_VANILLA": "yes" if trains_vanilla else "",
        "MORE_ROWS": _more_rows(preset.get("train", {}), request.stages["train"]),
        "NOTICE": str(settings.get("notice", "")),
        "DRY_RUN": "yes" if "dry_run" in request.flags else "",
        **arguments,
        "MORE_ROWS_ARGS": _flat([*of_more, *overwrite]),
    }


def _more_rows(preset: dict[str, Any], words: Sequence[Words]) -> list[str]:
    """Return the options of `precompute`, a string a cache, for rows that the methods read beside the references'.

    Raises:
        DataError: a method that does not exist, or cannot be what its options say.
    """
    from .train.choose_method import choose_method

    given = {values[0].removeprefix("--"): values[-1] for values in words}
    names = ("lambda", "retain", "ascent", "regularizer", "teacher")
    asked: dict[str, Any] = {name: given.get(name, preset.get(name)) for name in names}
    numbers = {name: None if asked[name] is None else float(asked[name]) for name in ("lambda", "retain")}
    methods = [values[1] for values in words if values[0] == "--method"] or preset.get("method", ["recommended"])
    found: dict[str, None] = {}
    for name in methods:
        method = choose_method(
            name, lambda_=numbers["lambda"], retain=numbers["retain"], ascent=asked["ascent"],
            regularizer=asked["regularizer"], teacher=asked["teacher"],
        )  # fmt: skip
        found |= dict.fromkeys(" ".join(options) for options in method.precomputes)
    return [options for options in found if not options.startswith("--teacher reference")]


def _flat(options: Sequence[Words]) -> list[str]:
    return [word for words in options for word in words]


def _source(scenario: str, where: str | None, request: Request, preset_source: str, caller: Path) -> str:
    """Return where the data comes from: the directory of `own`, what the user named, or the preset's."""
    if scenario != "own":
        return _from_caller(request.own["source"], caller) if "source" in request.own else preset_source
    if where is None or not request.forget or not request.own.get("model"):
        raise click.UsageError(
            "pipeline.sh own: expected DIR --forget ID [--forget ID] --model M, found less. Name them all."
        )
    if "source" in request.own:
        raise click.UsageError("pipeline.sh own: expected DIR alone, found --data.source too. Leave one out.")
    return _from_caller(where, caller)


def _controls(settings: dict[str, Any], request: Request, run: str) -> str:
    """Return the preset's controls, unless the user named some: an option for one source is given once."""
    named = request.names("evaluate", "--controls") or "source" in request.own
    return "" if named else str(settings.get("controls", "")).replace("{data}", f"{run}/data")


def _base(settings: dict[str, Any], request: Request, *, trains_vanilla: bool, has_retain_only: bool) -> str:
    """Return the model that was never taught these people, where one is needed.

    Raises:
        click.UsageError: retain-only is asked for, and nothing says what it starts from.
    """
    base = str(settings.get("base", "")) if trains_vanilla or not settings.get("trains_vanilla") else ""
    if has_retain_only and not base and not request.names("finetune", "--model"):
        raise click.UsageError(
            "pipeline.sh --with-retain-only: expected --finetune.model M, a model that was never taught these people, "
            "found none. Name it, or leave retain-only out."
        )
    return base


def _use_processor_of(model: str, preset: dict[str, Any], request: Request) -> None:
    """Take tokenizer and image processor from the user's model where the preset names those of its own model."""
    for stage in _HAS_PROCESSOR:
        tables = [preset.get(stage, {})]
        tables += [table for table in tables[0].values() if isinstance(table, dict)]
        if any("processor" in table for table in tables) and not request.names(stage, "--processor"):
            request.stages[stage].insert(0, ("--processor", model))


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
            f"pipeline.sh: expected {', '.join(SCENARIOS)}, found {found}. Presets: {', '.join(preset_names())}."
        )
    scenario, rest = arguments[0], list(arguments[1:])
    where = rest.pop(0) if rest and not rest[0].startswith("--") else None
    if scenario != "own" and where is not None:
        raise click.UsageError(f"pipeline.sh {scenario}: expected options, found {where!r}.")
    for name, value in resolve(scenario, where, read_arguments(rest, caller), caller).items():
        text = shlex.quote(value) if isinstance(value, str) else f"({' '.join(map(shlex.quote, value))})"
        click.echo(f"{name}={text}")
