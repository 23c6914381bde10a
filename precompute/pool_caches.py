"""For each of several pools, the cached reference rows of the same answers drawn from it; or how to make them.

Rows are asked for as `viker precompute` does, so a cache serves by the rules of identity; the pool has to be the one
named, and the draw (k, seed, policy) the same for all pools, since it changes rows as much as a pool does. What the
draw is, where nobody says it, is what the run's own rows were drawn with. No weights are loaded. Every pool without
rows is listed at once with the command that makes them: into a folder of its own in the run, because a run stores one
key a kind, and what a folder of a run stores is safe from `viker cache gc`.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.artefact import read_json
from ..data.example import DataError
from ..data.inputs import complete_rows
from ..data.references import Pool, open_pool
from ..data.sources import open_source
from .ask import Asked, ask
from .cache import CacheError, TeacherCache, cache_home, serving_caches

if TYPE_CHECKING:
    from .reading.identity import Fingerprint

_NAMED = ("pool", "draw")  # must be as asked for; all else by the rules


class Draw(NamedTuple):
    """How references are drawn from a pool."""

    num_references: int = 8
    seed: int = 0
    shared: bool = False

    @property
    def field(self) -> dict[str, Any]:
        """The draw as a fingerprint says it."""
        policy = "shared" if self.shared else "per-example"
        return {"policy": policy, "seed": self.seed, "num_references": self.num_references}

    @property
    def words(self) -> list[str]:
        """The draw as `viker precompute` is told it; k always, because presets say it too."""
        seed = ["--seed", str(self.seed)] if self.seed else []
        return ["--num-references", str(self.num_references), *seed, *["--shared-references"] * self.shared]


class PoolCaches(NamedTuple):
    """The cache and the opened pool of every name, the draw of all of them, and whose rows were asked for."""

    caches: dict[str, TeacherCache]
    pools: dict[str, Pool]
    draw: Draw
    row_keys: frozenset[bytes]


def find_pool_caches(
    options: Mapping[str, Any], specs: Sequence[str], command: Sequence[str], announce: Callable[[str], None]
) -> PoolCaches:
    """Return the cached reference rows of the forget split under each pool.

    Args:
        options: of `viker references score`: source, model and rendering; num_references, seed and shared_references
            are None where nobody says them.
        specs: pools, as `viker precompute --pool` takes them.
        command: the words that ask `viker precompute` for the same answers of the same teacher, but for run and pool.
        announce: told which of several caches is taken, and what differs.

    Raises:
        DataError: pools cannot be opened, or have no cached rows; all of them at once.
    """
    own = _own_rows(options["run"])
    draw = _draw(options, own)
    pools = _open_pools(options, specs)
    wanted = {
        "teacher": "reference", "answers": "own", "instruction": None, "split": "forget", "limit": None, "top_k": 0,
        "dtype": "float32", "store_logprobs": "float16", "quantization": None, "num_references": draw.num_references,
        "seed": draw.seed, "shared_references": draw.shared, "pool": specs[0],
    }  # fmt: skip
    asked = ask({**options, **wanted}, announce)
    caches = {spec: _find(asked, pool, own, announce) for spec, pool in pools.items()}
    found = {spec: cache for spec, cache in caches.items() if cache is not None}
    misses = [spec for spec in specs if spec not in found]
    if misses:
        words = [*command, *_computed_as(own), *draw.words]
        lines = "\n".join(f"  {_command(options['run'], spec, pools[spec], specs, words)}" for spec in misses)
        raise DataError(
            f"expected cached rows under each of {len(pools)} pools in {cache_home()}, found none under "
            f"{', '.join(misses)}. Make them:\n{lines}"
        )
    return PoolCaches(found, pools, draw, frozenset(asked.request.by_row_key))


def _own_rows(run: Path | None) -> TeacherCache | None:
    """Return the cache that a run stores for its own pool, if it is here."""
    place = complete_rows(run, "reference-forget")
    if place is None:
        return None
    try:
        return TeacherCache.open(cache_home() / str(read_json(place / "provenance.json")["cache"]["key"])[:16])
    except CacheError:
        return None


def _draw(options: Mapping[str, Any], own: TeacherCache | None) -> Draw:
    known = Draw()
    if own is not None:
        draw = own.fingerprint["draw"]
        known = Draw(draw["num_references"], draw["seed"], draw["policy"] == "shared")
    said = {
        "num_references": options["num_references"], "seed": options["seed"], "shared": options["shared_references"],
    }  # fmt: skip
    return known._replace(**{name: value for name, value in said.items() if value is not None})


def _open_pools(options: Mapping[str, Any], specs: Sequence[str]) -> dict[str, Pool]:
    source = open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )
    pools, problems = dict[str, Pool](), list[str]()
    for spec in dict.fromkeys(specs):
        try:
            pools[spec] = open_pool(spec, source)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    by_digest: dict[str, str] = {}
    for spec, pool in pools.items():
        other = by_digest.setdefault(pool.digest, spec)
        if other != spec:
            raise DataError(f"--pool {spec}: expected pools of different images, found those of {other}. Name it once.")
    return pools


def _find(asked: Asked, pool: Pool, own: TeacherCache | None, announce: Callable[[str], None]) -> TeacherCache | None:
    """Return the cache of a pool: the run's own before others, then one that was computed as the run's own was."""
    wanted: Fingerprint = {**asked.request.fingerprint, "pool": pool.digest}
    serving = serving_caches(cache_home(), wanted, _NAMED, asked.request.by_row_key.keys())
    if not serving:
        return None

    def distance(cache: TeacherCache) -> tuple[bool, int, str]:
        others = wanted if own is None else own.fingerprint
        computed = ("teacher_dtype", "quantization", "storage", "rows")
        unlike = sum(cache.fingerprint[name] != others[name] for name in computed)
        return own is None or cache.key != own.key, unlike, cache.key

    first, *others = sorted(serving, key=distance)
    if others:
        named = ", ".join(cache.key[:16] for cache in others)
        announce(f"references: {pool.name}: rows of {first.key[:16]} are taken; {named} would serve too")
    return first


def _computed_as(own: TeacherCache | None) -> list[str]:
    """Return the words that make other rows be computed as a run's own were, where that is not the default."""
    if own is None:
        return []
    dtype, quantization = own.fingerprint["teacher_dtype"], own.fingerprint.get("quantization")
    words = [] if dtype == "float32" else ["--dtype", str(dtype)]
    return words if quantization is None else [*words, "--quantization", str(quantization)]


def _command(run: Path | None, spec: str, pool: Pool, specs: Sequence[str], words: Sequence[str]) -> str:
    """Return the command that makes a pool's rows, into a folder of the run that no other pool has."""
    place = [] if run is None else ["--run", str(_place(run, spec, pool, specs))]
    after = words.index("precompute") + 1
    return shlex.join(["viker", *words[:after], *place, "--pool", spec, *words[after:]])


def _place(run: Path, spec: str, pool: Pool, specs: Sequence[str]) -> Path:
    name = Path(spec).name
    place = run / f"pool-{name}"
    is_taken = complete_rows(place, "reference-forget") is not None
    is_shared = sum(Path(one).name == name for one in specs) > 1
    return run / f"pool-{name}-{pool.digest[:8]}" if is_taken or is_shared else place
