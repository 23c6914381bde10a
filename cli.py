"""The `viker` command: names the stages, loads one of them on demand, and turns user mistakes into one clear error.

`viker --help` imports neither torch nor transformers: a command's module is loaded when the command is called. Options
live with their stage (`<stage>/commands.py`); presets are plain TOML files that become click's `default_map`. What one
stage may not import of another (training calls for a measurement in the middle of a run) is handed over here.
"""

import os
import sys
import tomllib
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from . import __version__
from .data.example import DataError
from .data.options import as_defaults

EXIT_FAILURE, EXIT_MISMATCH, EXIT_INTERRUPTED = 1, 3, 75

COMMANDS: dict[str, tuple[str, str]] = {
    "data": (".data.commands", "Make or show data: the embedded benchmark, a published one, your own people."),
    "finetune": (".train.finetune_commands", "Teach a model answers: base, vanilla, retain-only."),
    "precompute": (".precompute.commands", "Run the frozen teacher once and store its rows in a cache."),
    "train": (".train.commands", "Unlearn from cached rows, without the teacher."),
    "evaluate": (".evaluate.commands", "Say what was forgotten and what survived."),
    "report": (".evaluate.report.commands", "Put a run's numbers and answers on one page."),
    "record": (".evaluate.record.commands", "Write down what was done about one person, as evidence without a name."),
    "ask": (".evaluate.ask_commands", "Ask a model one question about a picture."),
    "adapter": (".train.adapter_commands", "List, inspect or export the adapters of a run."),
    "cache": (".precompute.cache_commands", "List, check, extend, share or remove teacher caches."),
    "references": (".precompute.references_commands", "List pools of irrelevant images, or rank them by cached rows."),
    "sweep": (".sweep.commands", "Train a grid of settings, and compare them at matched forgetting."),
    "plan": (".plan.commands", "Say what a stage is going to cost, before it is run."),
    "bench": (".bench.commands", "Measure speed and size on this machine."),
    "purge": (".purge.commands", "Take a person out of caches, replies and reports, and keep a record."),
    "doctor": (".doctor", "Say what this machine can run, and what is missing."),
    "pipeline": (".pipeline", "Resolve the options of pipeline.sh."),
}
_HIDDEN = {"pipeline"}


class Stages(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the pipeline."""
        return [name for name in COMMANDS if name not in _HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command: click.Command = import_module(module, __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above, so that help imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items() if name not in _HIDDEN])


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(path.stem for path in (Path(__file__).parent / "presets").glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset by name or path.

    Raises:
        DataError: no such preset, or it is not TOML.
    """
    path = Path(name) if name.endswith(".toml") else Path(__file__).parent / "presets" / f"{name}.toml"
    if not path.is_file():
        raise DataError(f"--preset: expected one of {', '.join(preset_names())} or a .toml file, found {name!r}.")
    try:
        preset = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected TOML, found something else ({error}).") from error
    if unknown := sorted(set(preset) - {"pipeline", *COMMANDS}):
        raise DataError(f"{path}: expected tables named like commands, or [pipeline], found {', '.join(unknown)}.")
    return preset


@click.group(cls=Stages, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="viker")
@click.option("--preset", metavar="NAME", help="Defaults for every command: a name from presets/, or a TOML file.")
@click.pass_context
def viker(ctx: click.Context, preset: str | None) -> None:
    """Make a multimodal LLM forget a person on request, provably and without breaking it."""
    ctx.obj = {"preset": preset, "measure": _measure, "published_at": _published_at, "fetch_stored": _fetch_stored}
    stage = ctx.invoked_subcommand
    if preset is not None and stage is not None:
        command = viker.get_command(ctx, stage)
        assert command is not None, "click found it before"
        tables = read_preset(preset)
        settings = tables.get(stage, {})
        if stage == "plan" and isinstance(command, click.Group):  # which takes the tables of the stages it plans
            settings = {name: table for name, table in tables.items() if name in command.commands}
        ctx.default_map = {stage: as_defaults(command, settings, f"preset {preset}, {stage}")}


def _measure(*arguments: Any) -> Any:
    """Return what measures a model in the middle of training, which may not import evaluation and is handed this."""
    from .evaluate.trajectory import measurer

    return measurer(*arguments)


def _published_at(address: str) -> Any:
    """Return the cache that is published at an address: training may not import what fetches it."""
    from .precompute.sharing.shared import published_at

    return published_at(address)


def _fetch_stored(*arguments: Any) -> bool:
    """Fetch the cache that a run stores, and return whether it is here now."""
    from .precompute.sharing.shared import fetch_stored

    return fetch_stored(*arguments)


def main() -> None:
    """Run the command line with exit codes that mean something: design, section 3."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft 0.21 reads a name that transformers 5.23 renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        sys.exit(viker.main(standalone_mode=False, prog_name="viker") or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end_bars()
        click.echo("Interrupted. Run the same command again: what is complete is kept.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        code = _exit_code(error)
        if code is None or os.environ.get("VIKER_TRACEBACK"):
            raise
        _end_bars()
        click.echo(f"Error: {error}", err=True)
        sys.exit(code)


def _end_bars() -> None:
    """End the line of a progress bar that was interrupted, so that a message has its own."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of a user's mistake, None for ours (which keeps its traceback)."""
    from .data.artefact import ArtefactMismatch

    names = {type_.__name__ for type_ in type(error).__mro__}
    if isinstance(error, ArtefactMismatch) or names & {"CacheMismatch", "RowsNotCovered"}:
        return EXIT_MISMATCH
    if isinstance(error, DataError) or names & {"CacheError", "StorageError", "NonFiniteLoss", "OutOfMemoryError"}:
        return EXIT_FAILURE
    if isinstance(error, OSError) and error.errno is not None:
        return EXIT_FAILURE
    return None
