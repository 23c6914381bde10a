"""`viker data make|show`: write an embedded benchmark or pin a source for a run, and look at any split.

A run's `data` folder is an artefact like any other. For an embedded benchmark it holds the files themselves; for any
other source it holds `source.json`, which says where the data is, at which commit, and who is to be forgotten, after
every split was read once and counted.
"""

import json
import time
from pathlib import Path

import click

from .artefact import begin, decide, finish, write_json
from .clear_rows import RATIOS as CLEAR_RATIOS
from .example import DataError
from .limited import FirstPeople
from .mini_clear_files import make_mini_clear
from .mini_files import make_mini
from .mini_hard_files import make_mini_hard
from .mllmu import RATIOS
from .show import as_json, as_text, summarize
from .sources import POINTER_FILE, POINTER_SCHEMA, checked_ratio, named_people, open_source

# The embedded benchmarks: who writes them, how many people by default, which splits they have; who writes harder ones.
EMBEDDED = {"mini": (make_mini, 60, RATIOS), "mini-clear": (make_mini_clear, 40, CLEAR_RATIOS)}
HARDER = {"mini": make_mini_hard}


@click.group()
def command() -> None:
    """Make or show data: the embedded benchmark, a published one, your own people."""


@command.command()
@click.argument("source")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="mini, mini-clear: which world.")
@click.option(
    "--people",
    type=click.IntRange(20, 400),
    show_default="60, mini-clear 40",
    help="mini, mini-clear: people in the world.",
)
@click.option(
    "--hard",
    is_flag=True,
    help="mini: a harder world, with look-alikes, shared and dependent facts, longer answers, two pictures a person.",
)
@click.option(
    "--ratio", default="10", show_default=True, help="Which published forget split: 5, 10 or 15 (CLEAR: 1, 5, 10)."
)
@click.option("--forget", multiple=True, metavar="ID|FILE", help="Forget these people instead (repeatable).")
@click.option("--revision", help="Branch, tag or commit of a hub dataset.")
@click.option("--allow-no-retain", is_flag=True, help="Accept a source that leaves nobody to retain.")
@click.option(
    "--limit", type=click.IntRange(1), help="Only the first so many people to forget, and as many others (smoke runs)."
)
@click.option("--overwrite", is_flag=True, help="Replace a data folder made with other options.")
def make(
    source: str, directory: Path, seed: int, people: int | None, hard: bool, ratio: str, forget: tuple[str, ...],
    revision: str | None, allow_no_retain: bool, limit: int | None, overwrite: bool,
) -> None:  # fmt: skip
    """Write an embedded benchmark (SOURCE `mini` or `mini-clear`) to DIRECTORY, or pin any other SOURCE for a run."""
    if hard and source not in HARDER:
        raise click.UsageError(f"--hard: expected the source {' or '.join(HARDER)}, found {source}. Leave it out.")
    if source in EMBEDDED:
        write, usual, ratios = EMBEDDED[source]
        write, people = HARDER[source] if hard else write, people or usual
        made = write(
            directory, seed=seed, num_people=people, ratio=checked_ratio(ratio, ratios),
            forget=sorted(named_people(forget)), limit=limit, overwrite=overwrite,
        )  # fmt: skip
        click.echo(
            f"data: {'wrote' if made else 'complete, skipped:'} {directory} ({people} fictitious people, seed {seed})"
        )
        return
    absolute = str(Path(source).resolve()) if Path(source).is_dir() else source
    config = {
        "schema": "viker/data/1",
        "source": absolute,
        "ratio": ratio,
        "forget": sorted(forget),
        "revision": revision,
        "limit": limit,
    }
    if decide(directory, config, overwrite=overwrite, what="data folder") == "skip":
        click.echo(f"data: complete, skipped: {directory}")
        return
    started = time.time()
    whole = open_source(source, revision=revision, ratio=ratio, forget=forget, allow_no_retain=allow_no_retain)
    opened = whole if limit is None else FirstPeople(whole, limit)
    counts = {split: as_json(summarize(opened.read(split))) for split in ("forget", "retain", "test", "real")}
    training = as_json(summarize(opened.training("forget")))
    if not training["num_people"]:
        raise DataError(
            f"{source}: expected training questions about the forget people, found none. Check --forget and --ratio."
        )
    begin(directory, config)
    pointer = {
        "schema": POINTER_SCHEMA, "source": absolute, "revision": opened.commit, "ratio": ratio,
        "forget": sorted(opened.forget_people()) if forget else [], "limit": limit,
    }  # fmt: skip
    write_json(directory / POINTER_FILE, pointer)
    digests = {split: summary["digest"] for split, summary in {**counts, "training": training}.items()}
    finish(directory, {"inputs": {"source": absolute, "commit": opened.commit, "digests": digests}}, started=started)
    click.echo(f"data: pinned {source}{f' at {opened.commit}' if opened.commit else ''}")
    for split, summary in counts.items():
        click.echo(
            f"  {split:7} {summary['num_people']} people, {summary['num_images']} images, {summary['num_questions']}"
        )


@command.command()
@click.argument("source")
@click.option(
    "--split",
    required=True,
    help="A published folder (forget_10, Test_Set, full+tofu ...), or forget, retain, test, real.",
)
@click.option("--ratio", help="Which published forget split the words forget, retain, test mean: 5, 10, 15 (CLEAR: 1).")
@click.option("--forget", multiple=True, metavar="ID|FILE", help="Forget these people instead (repeatable).")
@click.option("--revision", help="Branch, tag or commit of a hub dataset.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
def show(
    source: str, split: str, ratio: str | None, forget: tuple[str, ...], revision: str | None, as_json_: bool
) -> None:
    """Print counts, one example and the digest of a split of SOURCE."""
    opened = open_source(source, ratio=ratio, forget=forget, revision=revision)
    summary = summarize(opened.read(split))
    click.echo(json.dumps(as_json(summary), ensure_ascii=False, indent=2) if as_json_ else as_text(summary))
    for reason, count in opened.skipped().get(split, {}).items():
        click.echo(f"left out: {count} {reason}", err=True)
