"""`viker references`: which reference pools can be named for a source, and which of several the cached rows favour.

`list` opens pools and no model. `score` reads caches: it trains nothing, runs no model and loads no weights. What its
numbers mean is in `reference_scores.py` and `image_scores.py`, which caches it reads in `pool_caches.py`. Neither shows
an answer, or whom anything is about.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..data.example import DataError
from ..data.options import config_option, encoder_options, named_options, source_options
from ..data.references import BUILT_IN, CELEBRITIES, OWN_PEOPLE, Pool, built_in_pool, open_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.source import Source
    from .image_scores import ImageScores
    from .reference_scores import PoolScore

# Options of `score` that `viker precompute` takes too: what they say has to be said again to make the rows.
_PASSED = (
    "ratio", "forget", "data_revision", "processor", "revision", "trust_remote_code", "chat_template", "system_prompt",
    "score_end_token", "skip_text",
)  # fmt: skip
_MOST_IMAGES = 10


class Nameable(NamedTuple):
    """A pool as `viker precompute --pool` is told it, what it is, and its images, or why it cannot be used."""

    spec: str
    what: str
    pool: Pool | None
    problem: str | None

    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        images, digest = (None, None) if self.pool is None else (len(self.pool.images), self.pool.digest)
        return {"pool": self.spec, "what": self.what, "images": images, "digest": digest, "problem": self.problem}


@click.group()
def command() -> None:
    """List reference pools, or rank them by cached rows."""


@command.command(name="list")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(data: str | None, as_json: bool, **options: Any) -> None:
    """List the pools that --pool can name: built in, and those of a source where --data names one."""
    source = None
    if data is not None:
        from ..data.sources import open_source

        source = open_source(data, ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"])
    found = nameable_pools(source, data)
    if as_json:
        told = {"schema": "viker/reference-pools/1", "data": data, "pools": [pool.told() for pool in found]}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo("\n".join([f"{len(found)} pools; any other folder of pictures is one too", *map(_as_line, found)]))


def nameable_pools(source: "Source | None", data: str | None) -> list[Nameable]:
    """Return the pools that can be named without a folder of one's own, each opened; and those that are ablations."""
    found = [Nameable(name, "built in", built_in_pool(name), None) for name in BUILT_IN]
    if source is None or data is None:
        return found
    celebrities = _opened(CELEBRITIES, "half of the source's real people", source)
    if celebrities.pool is not None and celebrities.pool.images:  # a source need not have real people
        found.append(celebrities)
    folders = sorted(path for path in (Path(data) / "pools").glob("*") if path.is_dir())
    found += [_opened(str(folder), "comes with the data", source) for folder in folders]
    return found + [_opened(name, "the people themselves: for ablations alone", source) for name in OWN_PEOPLE]


def _opened(spec: str, what: str, source: "Source") -> Nameable:
    try:
        return Nameable(spec, what, open_pool(spec, source), None)
    except DataError as error:
        return Nameable(spec, what, None, str(error))


def _as_line(one: Nameable) -> str:
    if one.pool is None:
        return f"  {one.spec}  ({one.what}) cannot be used: {one.problem}"
    return f"  {one.spec}  {len(one.pool.images)} images, digest {one.pool.digest[:16]}, {one.what}"


@command.command()
@click.option("--run", type=click.Path(path_type=Path), help="The run whose own rows say how references are drawn.")
@source_options
@encoder_options
@click.option(
    "--pool", "pools", multiple=True, metavar="DIR|NAME",
    help="A pool as `viker precompute` takes it; repeat it. Three or more let the pools vote on key tokens.",
)  # fmt: skip
@click.option("--images", metavar="DIR|NAME", help="Rank the images of this pool too, by association with its rows.")
@click.option("--num-references", type=click.IntRange(1, 65535), help="Images averaged (default: as the run's own, 8).")
@click.option(
    "--shared-references/--no-shared-references", default=None, help="One set for every example (as the run's own)."
)
@click.option("--seed", type=int, help="Seed of the draw (default: as the run's own rows, 0).")
@click.option(
    "--key-entropy", default=1.0, show_default=True,
    help="Nats; tokens whose median entropy over the pools is above it are key.",
)  # fmt: skip
@click.option("--skip-text", is_flag=True, help="Leave out examples without an image, and say how many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
@click.pass_context
def score(ctx: click.Context, /, pools: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Rank pools by their cached rows: sure of normal tokens, unsure of key ones; nothing is trained."""
    for name in ("data", "model"):
        if options[name] is None:
            raise click.UsageError(f"references score: expected --{name}, found none.")
    images = options["images"]
    specs = list(dict.fromkeys([*pools, *([] if images is None else [images])]))
    if not specs:
        raise click.UsageError(
            "references score: expected --pool, found none. `viker references list --data DATA` names those there are."
        )
    from .image_scores import image_scores
    from .pool_caches import find_pool_caches
    from .reference_scores import pool_scores, pooled_rows

    found = find_pool_caches(options, specs, precompute_words(ctx), lambda text: click.echo(text, err=True))
    scores = pool_scores(found.caches, options["key_entropy"], found.row_keys)
    of_images = None
    if images is not None:
        rows = pooled_rows(found.caches, options["key_entropy"], found.row_keys)
        of_images = image_scores(rows, images, found.caches[images])
    if as_json:
        told = {
            "schema": "viker/reference-scores/1", "key_entropy": options["key_entropy"], "draw": found.draw.field,
            "pools": [one.told() for one in scores], "images": None if of_images is None else of_images.told(),
        }  # fmt: skip
        click.echo(json.dumps(told, indent=2))
        return
    click.echo("\n".join([*_told_of_pools(scores, options["key_entropy"]), *_told_of_images(of_images, found.pools)]))


def precompute_words(ctx: click.Context) -> list[str]:
    """Return the words that ask `viker precompute` for what a command was asked for, but for run, pool and draw."""
    preset = ctx.find_root().params.get("preset")
    words = [*([] if preset is None else ["--preset", str(preset)]), "precompute"]
    words += ["--data", str(ctx.params["data"]), "--model", str(ctx.params["model"])]
    named = named_options(ctx)
    for option in ctx.command.params:
        if isinstance(option, click.Option) and option.name in _PASSED and option.name in named:
            words += _said(option, ctx.params[option.name])
    return words


def _said(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [option.opts[0]] if value else list(option.secondary_opts[:1])
    values = value if option.multiple else [value]
    return [word for one in values for word in (option.opts[0], str(one))]


def _told_of_pools(scores: "Sequence[PoolScore]", key_entropy: float) -> list[str]:
    first = scores[0]
    width = max(len("pool"), *(len(one.name) for one in scores))
    lines = [
        f"references: {first.key_tokens} key and {first.tokens - first.key_tokens} normal tokens of {first.people} "
        f"people: the median entropy over {len(scores)} pools is above {key_entropy:g} nats, or not",
        f"     {'pool':{width}}  score (error)    agreement  leak    entropy at key, normal   behind (error)",
    ]
    lines += [
        f"  {one.rank:2} {one.name:{width}}  {one.score:.4f} ({_shown(one.score_error)})  {one.agreement:.4f}     "
        f"{one.leak:.4f}  {one.key_entropy:.3f}, {one.normal_entropy:.3f}             {one.behind:.4f} "
        f"({_shown(one.behind_error)})"
        for one in scores
    ]
    close = [one.name for one in scores[1:] if one.behind_error is None or one.behind <= 2 * one.behind_error]
    if close:
        lines.append(f"  within two standard errors of {first.name}, so not told apart from it: {', '.join(close)}")
    people = [one.name for one in scores if one.name in OWN_PEOPLE and not Path(one.name).is_dir()]
    if people:
        lines.append(
            f"  Warning: {' and '.join(people)}: the people themselves, for ablations; never unlearn anybody from them."
        )
    if len(scores) < 3:
        lines.append(
            f"  Warning: {'one pool decides' if len(scores) == 1 else 'two pools decide'} alone which tokens are key: "
            "one that leaks an answer hides that it is key. Name three or more."
        )
    return lines


def _told_of_images(scores: "ImageScores | None", pools: dict[str, Pool]) -> list[str]:
    if scores is None:
        return []
    origins = {image.sha256: Path(image.origin).name for image in pools[scores.pool].images}
    lines = [
        f"images of {scores.pool}: score of answers that were shown an image minus that of the others, over "
        f"{scores.answers} answers ({scores.left_out} without a key or a normal token are left out; "
        f"{scores.not_ranked} images were shown to all or to none)"
    ]
    lines += [
        f"  {one.rank:3} {origins.get(one.sha256, '?')}  {one.sha256[:12]}  {one.association:+.4f} "
        f"({_shown(one.standard_error)}), shown to {one.shown}"
        for one in scores.images[:_MOST_IMAGES]
    ]
    if len(scores.images) > _MOST_IMAGES:
        lines.append(f"  and {len(scores.images) - _MOST_IMAGES} more, with --json")
    told = f"of 1000 shuffled draws, {scores.p * 1000:.0f} have as large a largest difference (p = {scores.p:.3f})"
    if scores.is_noise:
        return [*lines, f"  Warning: this is no more than noise: {told}. Choose no image by it."]
    return [*lines, f"  {told}: an association, not what an image does; k images were averaged in every row"]


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"
