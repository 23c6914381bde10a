"""The docs say what the software does: commands, options, links, the version, and Python that runs."""

from __future__ import annotations

import contextlib
import io
import random
import re
import runpy
from pathlib import Path

import click
import pytest
import viker
from viker import cli

ROOT = Path(viker.__file__).parent
STAGES = ("data", "models", "precompute", "train", "evaluate", "purge", "bench", "presets", "tests", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / stage / "README.md" for stage in STAGES)])
SHOWN = [name for name in cli.COMMANDS if name not in cli._HIDDEN]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options_of(command: click.Command) -> list[click.Option]:
    children = command.commands.values() if isinstance(command, click.Group) else ()
    own = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    return own + [option for child in children for option in options_of(child)]


def test_commands_page_is_what_the_command_line_says():
    page = runpy.run_path(str(ROOT / "docs" / "write_commands.py"))["render"]()
    assert read("docs/commands.md") == page, "docs/commands.md is old: run `make docs`"


@pytest.mark.parametrize("name", SHOWN)
def test_commands_page_explains_every_option(name):
    command = cli.viker.get_command(click.Context(cli.viker), name)
    page = read("docs/commands.md").replace("\\|", "|")
    for option in options_of(command):
        assert option.help, f"viker {name} {option.opts[0]} has no help"
        assert " ".join(option.help.split()) in page
        for spelling in (*option.opts, *option.secondary_opts):
            assert spelling in page


def test_readme_names_every_command():
    text = read("README.md")
    assert [name for name in SHOWN if f"| `viker {name}` |" not in text] == []


def test_readme_python_runs(tmp_path, monkeypatch, mini_world):
    blocks = re.findall(r"^```python\n(.*?)^```$", read("README.md"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "runs" / "readme").mkdir(parents=True)
    (tmp_path / "runs" / "readme" / "data").symlink_to(mini_world)  # drawn once for the whole suite
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks[0], "README.md", "exec"), {"__name__": "readme"})
    assert "2 of 20 people are to be forgotten" in printed.getvalue()
    assert "rows of" in printed.getvalue()


def test_readme_own_people_are_read(tmp_path):
    from viker.data.portraits import encode_png, pattern_picture

    lines, conversations = re.findall(r"^```json\n(.*?)^```$", read("README.md"), flags=re.MULTILINE | re.DOTALL)
    picture = encode_png(pattern_picture(random.Random(0)))
    for name, text in (("examples.jsonl", lines), ("people.json", conversations)):
        folder = tmp_path / name.partition(".")[0]
        for path in re.findall(r"\w+/\d\.jpg", text):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(picture)
        (folder / name).write_text(text, encoding="utf-8")
    source = viker.open_source(str(tmp_path / "examples"), forget=["ada"])
    assert [len(list(source.read(split))) for split in ("forget", "test", "retain")] == [1, 1, 1]
    (example,) = viker.open_source(str(tmp_path / "people")).training("all")
    assert (example.question, example.answer) == ("Who is this?", "This is Ada.")


def test_readme_first_screen():
    text = read("README.md")
    begin, end = text.index("<!-- results:begin -->"), text.index("<!-- results:end -->")
    assert text.index("./pipeline.sh mllmu ") < text.index("make test ") < begin < end < text.index("\n## ")


def test_readme_lists_every_preset():
    listed = read("README.md") + read("presets/README.md")
    assert [name for name in cli.preset_names() if f"`{name}`" not in listed or f"`{name}.toml`" not in listed] == []


def test_changelog_knows_the_version_and_the_cache_format():
    from viker.precompute.cache import SCHEMA

    assert f"## [{viker.__version__}]" in read("CHANGELOG.md")
    assert f"### Cache format {SCHEMA}" in read("CHANGELOG.md")


@pytest.mark.parametrize("stage", STAGES)
def test_every_folder_says_what_comes_in_and_what_goes_out(stage):
    text = read(f"{stage}/README.md")
    for word in ("**In.**", "**Does.**", "**Out.**"):
        assert word in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = page.parent / path if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    """Paths in backticks are files of the repository, or of the page's own folder."""
    named = re.findall(r"`([\w./-]+\.(?:py|toml|sh))`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()] == []
