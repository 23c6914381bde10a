"""Are these the teacher's rows? Recompute some of them from the real model and source, and say how far off they are.

Checksums prove that a cache is what its maker sealed, not that the maker ran this model: whoever can write a cache can
sign it. So a seeded draw of samples is run again by the oracle engine, cut to the same K, and compared. The weights,
the rendering and the pool are compared by digest first, before anything is loaded. Intact files are `verify.py`'s,
which goes first; how rows are compared is `distance.py`'s.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.example import DataError
from ..models.load import load_model, pick_device
from .ask import Asked, ask
from .cache import Rows, TeacherCache, token_hash
from .engines.naive import naive_rows
from .extend import as_made, require_same_lineage
from .reading.distance import row_distances
from .reading.layout import expect
from .reading.rows import as_rows
from .reading.verify import Problem
from .recorded import asked_of
from .run import Work, pending_of, stored_rows
from .writing.derive import join_rows

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02, "float16": 0.02}  # total variation, by the teacher's dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """How far recomputed rows are from those of the cache: mean and max total variation, and over which rows."""

    samples: int
    rows: int
    known_samples: int  # what the draw was from: the cache's samples that the source has too
    mean: float | None
    max: float | None
    tolerance: float
    problems: list[Problem]

    def told(self) -> dict[str, Any]:
        """Return the numbers, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "problems"}


def recompute(
    cache: TeacherCache, options: Mapping[str, Any], num_samples: int, seed: int, announce: Callable[[str], None]
) -> Recomputed:
    """Run the teacher on a seeded draw of a cache's samples and compare.

    Args:
        cache: whose files are intact.
        options: of `viker cache verify`; data, model and pool are named, a split only where the user names one.
        num_samples: how many samples to draw, of those the source knows.
        seed: of the draw.
        announce: told what is opened, and of warnings.

    Raises:
        CacheMismatch: the model, its rendering or the pool are not the cache's; every difference with both values.
        DataError: they are not there, or the source has none of the cache's questions.
    """
    options = as_made(cache.fingerprint, options)
    asked = _ask_all(cache, options, announce)
    known = {key: work for key, work in asked.request.by_row_key.items() if key in cache.row_keys}
    if not known:
        raise DataError(
            f"{cache.root}: expected some of its {cache.num_samples} samples among the questions of {options['data']}, "
            "found none. Name the --data, the --split and whom to --forget that it was made with."
        )
    chosen = sorted(random.Random(seed).sample(sorted(known), min(num_samples, len(known))))
    works = [known[key] for key in chosen]
    problems = [problem for work in works for problem in _misplaced(cache, work, asked)]
    dtype = cache.fingerprint["teacher_dtype"]
    expect(dtype in TOLERANCE, cache.root / "fingerprint.json", f"teacher_dtype among {sorted(TOLERANCE)}", dtype)
    tolerance = TOLERANCE[dtype]
    if problems:
        return _result(cache, works, known, np.empty(0), tolerance, problems)
    distances_N = row_distances(_recorded_rows(cache, works), _teachers_rows(cache, options, works, asked))
    if (worst := float(distances_N.max())) > tolerance:
        found = f"expected rows within total variation {tolerance} of the teacher's, found {worst:.3g}"
        problems = [Problem("semantic", f"{cache.root}: {found}. They are not this model's rows: do not use them.")]
    return _result(cache, works, known, distances_N, tolerance, problems)


def _ask_all(cache: TeacherCache, options: Mapping[str, Any], announce: Callable[[str], None]) -> Asked:
    """Open model, source and pool, and return all that the cache was made for, or the split named.

    Raises:
        CacheMismatch: as above.
    """
    named = {"split": options["split"], "ratio": options["ratio"]}
    every = asked_of(cache.build) if options["split"] is None else [named]
    works: list[Work] = []
    for one in every:
        ratio = options["ratio"] if options["ratio"] is not None else one["ratio"]
        announce(f"verify: {one['split']} of {options['data']}{'' if ratio is None else f', ratio {ratio}'}")
        asked = ask({**options, "split": one["split"], "ratio": ratio}, announce)
        require_same_lineage(cache, asked.request.fingerprint)
        works += asked.request.works
    return asked._replace(request=replace(asked.request, works=tuple(works)))


def _misplaced(cache: TeacherCache, work: Work, asked: Asked) -> list[Problem]:
    """Return what is wrong with a sample before its rows are looked at: other tokens, or other references."""
    index = cache.find_row(work.row_key)
    assert index is not None
    start, stop = cache.offset[index : index + 2]
    tokens = token_hash(cache.lineage, work.prompt_ids, work.answer_ids)
    problems = []
    if (int(cache.token_hash[index]), int(stop - start)) != (tokens, len(work.answer_ids)):
        problems.append(
            Problem("semantic", f"{cache.root}: sample {index}: expected rows of its tokens, found others.")
        )
    images_k = cache.reference_sha256[cache.reference[index]]
    pool = asked.intervention.pool
    drawn = [] if pool is None else [pool.images[image].sha256 for image in asked.intervention.draw(work.row_key)]
    if [digest.tobytes().hex() for digest in images_k] != drawn:
        problems.append(
            Problem("semantic", f"{cache.root}: sample {index}: expected its draw of references, found another.")
        )
    return problems


def _recorded_rows(cache: TeacherCache, works: list[Work]) -> Rows:
    places = [cache.find_row(work.row_key) for work in works]
    parts = [cache.rows_of(place) for place in places if place is not None]
    return Rows(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def _teachers_rows(cache: TeacherCache, options: Mapping[str, Any], works: list[Work], asked: Asked) -> Rows:
    """Load the teacher and return its rows of these works, as they would be stored."""
    model = load_model(
        asked.checkpoint, dtype=options["dtype"], device=pick_device(options["device"]), attention=options["attention"],
        quantization=options.get("quantization"), trust_remote_code=options["trust_remote_code"],
    )  # fmt: skip
    pending = [pending_of(work, asked.intervention, asked.encoder) for work in works]
    with torch.inference_mode():
        found = naive_rows(model, pending, asked.encoder.pad_id)
        rows = list(stored_rows(found, pending, cache.fingerprint))
    return as_rows({f"token/{name}": array for name, array in join_rows(rows).items()})


def _result(
    cache: TeacherCache, works: list[Work], known: Mapping[bytes, Work], distances_N: np.ndarray, tolerance: float,
    problems: list[Problem],
) -> Recomputed:  # fmt: skip
    return Recomputed(
        samples=len(works),
        rows=sum(len(work.answer_ids) for work in works),
        known_samples=sum(pair[:16] in known for pair in cache.sample_keys),
        mean=float(distances_N.mean()) if len(distances_N) else None,
        max=float(distances_N.max()) if len(distances_N) else None,
        tolerance=tolerance,
        problems=problems,
    )
