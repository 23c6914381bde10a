"""Click options that several commands share, so that one name means one thing everywhere."""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from .example import DataError

Command = TypeVar("Command", bound=Callable[..., Any])


def as_defaults(command: click.Command, settings: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Return settings by the names click gives their parameters: settings are named like the options (`top-k`, `lora`).

    Raises:
        DataError: a name is no option of the command, where `where` says what to call its place; else it is left out.
    """
    parameters = {
        name.lstrip("-").replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in (option.name or "", *option.opts)
    }
    subcommands = command.commands if isinstance(command, click.Group) else {}
    defaults: dict[str, Any] = {}
    for name, value in settings.items():
        option = parameters.get(name.replace("-", "_"))
        if option is not None and option.name is not None:
            defaults[option.name] = [value] if option.multiple and isinstance(value, str) else value
        elif name in subcommands and isinstance(value, dict):
            defaults[name] = as_defaults(subcommands[name], value, where and f"{where}.{name}")
        elif where is not None:
            known = ", ".join(sorted({*(name.replace("_", "-") for name in parameters), *subcommands}))
            raise DataError(f"{where}: expected options of the command, found {name!r}. Known are {known}.")
    return defaults


def _read_config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Use a TOML file, or an artefact's config.json, as this command's defaults."""
    if path is None:
        return
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--config {path}: expected a TOML file or an artefact's config.json, found neither ({error})."
        ) from error
    where = None if path.suffix == ".json" else f"--config {path}"  # an artefact records more than options
    chosen = as_defaults(ctx.command, values.get("options", values), where)
    ctx.default_map = {**(ctx.default_map or {}), **chosen}


def config_option(command: Command) -> Command:
    """Add `--config FILE`: another run's config.json, or TOML, as defaults."""
    option = click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="Defaults from a TOML file or an artefact's config.json.",
    )
    return option(command)


def source_options(command: Command) -> Command:
    """Add what names a source and its forget split: `--data`, `--ratio`, `--forget`, `--revision`."""
    options = [
        click.option(
            "--data", "data", metavar="DIR|ID", help="A data folder, a published layout, your people, or a hub id."
        ),
        click.option(
            "--ratio",
            help="Which published forget split: 5, 10, 15 (CLEAR: 1, 5, 10; else what the data folder records).",
        ),
        click.option("--forget", multiple=True, metavar="ID|FILE", help="Forget these people instead (repeatable)."),
        click.option("--data-revision", help="Branch, tag or commit of a hub dataset."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def model_options(command: Command) -> Command:
    """Add what loads a model: `--model`, `--processor`, `--revision`, device, dtype, attention, rendering."""
    found, loaded, rendered = _found_by(), _loaded_by(), _rendered_by()
    return _with_options(command, [*found, *loaded, *rendered])


def encoder_options(command: Command) -> Command:
    """Add what loads a model's tokenizer and rendering, for a command that needs no weights."""
    return _with_options(command, [*_found_by(), *_rendered_by()])


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _found_by() -> list[Callable[[Command], Command]]:
    return [
        click.option("--model", metavar="DIR|ID", help="A model directory, a PEFT directory, or a hub id."),
        click.option(
            "--processor", metavar="DIR|ID", help="Where tokenizer and image processor are, if not with the model."
        ),
        click.option("--revision", help="Branch, tag or commit of a hub model."),
    ]


def _loaded_by() -> list[Callable[[Command], Command]]:
    return [
        click.option("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            show_default=True,
            help="What the model computes in.",
        ),
        click.option("--attention", default="sdpa", show_default=True, help="transformers' attention implementation."),
    ]


def _rendered_by() -> list[Callable[[Command], Command]]:
    return [
        click.option(
            "--trust-remote-code", is_flag=True, help="Run code that comes with the model. Only if you read it."
        ),
        click.option(
            "--chat-template",
            type=click.Path(path_type=Path, exists=True),
            help="A chat template instead of the model's own.",
        ),
        click.option("--system-prompt", help="A system turn before every question that has none."),
        click.option(
            "--score-end-token/--no-score-end-token",
            default=None,
            help="Whether answers end with the end token (default: as trained).",
        ),
    ]


def run_directory(run: Path | None, what: str) -> Path:
    """Return the run directory, or say how to name one."""
    if run is None:
        raise click.UsageError(f"{what}: expected --run DIR (or the explicit paths), found neither.")
    return run


def chosen_options(ctx: click.Context, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the resolved options of a command as plain values, for config.json."""
    plain: dict[str, Any] = {}
    for name, value in ctx.params.items():
        if name in without:
            continue
        plain[name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return plain


def named_options(ctx: click.Context) -> frozenset[str]:
    """Return the options the user named, on the command line or by a preset."""
    from click.core import ParameterSource

    return frozenset(
        name for name in ctx.params
        if ctx.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    )  # fmt: skip
