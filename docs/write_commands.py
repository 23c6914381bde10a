"""Write docs/commands.md: every command and option as the command line itself explains them (`make docs`)."""

from pathlib import Path

import click
from viker.cli import viker

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Commands

Written by `make docs` from the command line itself; do not edit. The same text is behind `--help`.
Every command can be given defaults by `viker --preset NAME COMMAND ...` ([presets](../presets/README.md)); most also
take `--config FILE`, which reads TOML or the `config.json` of an artefact. What is said on the line wins, then
`--config`, then the preset. Exit codes are in the [README](../README.md#exit-codes).
"""


def render() -> str:
    """Return the page."""
    ctx = click.Context(viker, info_name="viker")
    parts = [HEAD, "## viker\n", f"{_first_paragraph(viker)}\n", _options(viker, ctx)]
    shown: dict[str, str] = {}
    for name in viker.list_commands(ctx):
        command = viker.get_command(ctx, name)
        assert command is not None, name
        parts += _sections(command, click.Context(command, info_name=name, parent=ctx), shown)
    return "\n".join(parts)


def _sections(command: click.Command, ctx: click.Context, shown: dict[str, str]) -> list[str]:
    """Return a command's section and those of its subcommands; a table shown before is named, not repeated."""
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    level = "##" if ctx.parent is not None and ctx.parent.parent is None else "###"
    parts = [f"{level} {ctx.command_path}\n", f"    {usage}\n", f"{_first_paragraph(command)}\n"]
    table = _options(command, ctx)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None, name
            parts += _sections(child, click.Context(child, info_name=name, parent=ctx), shown)
    elif table and table in shown:
        parts.append(f"Options: those of `{shown[table]}`.\n")
    elif table:
        shown[table] = ctx.command_path
        parts.append(table)
    return parts


def _first_paragraph(command: click.Command) -> str:
    text = (command.help or "").partition("\n\n")[0]
    return " ".join(text.split())


def _options(command: click.Command, ctx: click.Context) -> str:
    """Return the table of a command's options, without --help; hidden ones are left out."""
    records = [
        option.get_help_record(ctx) for option in command.params
        if isinstance(option, click.Option) and "--help" not in option.opts
    ]  # fmt: skip
    rows = [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in filter(None, records)]
    return "\n".join(["| option | meaning |", "|---|---|", *rows, ""]) if rows else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")  # noqa: T201
