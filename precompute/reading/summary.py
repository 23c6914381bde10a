"""What a cache holds, in a few numbers: size, kept mass, key and normal tokens, and R(y) at either.

`precompute` prints it when it is done and `cache inspect` at any time, so it lives apart from the run and imports no
torch. R(y) at key tokens is the number to look at: a teacher that says the answer under irrelevant images leaks it.
"""

# N answer tokens, K kept

from pathlib import Path
from typing import Any

import numpy as np

from ..cache import TeacherCache


def summarize(cache: TeacherCache, key_entropy: float) -> dict[str, Any]:
    """Return what a finished precompute says: size, kept mass, key and normal tokens, R(y) at key tokens."""
    rows = cache.load()
    kept_mass_N = np.exp(rows.kept_logprobs_NK).sum(1)
    is_key_N = rows.entropy_N > key_entropy
    return {
        "samples": cache.num_samples,
        "rows": cache.num_rows,
        "bytes_per_row": round(num_bytes(cache.root) / cache.num_rows, 1),
        "kept_mass_quantiles": [round(float(value), 4) for value in np.quantile(kept_mass_N, (0.05, 0.5, 0.95))],
        "key_tokens": int(is_key_N.sum()),
        "normal_tokens": int((~is_key_N).sum()),
        "answer_probability_at_key_tokens": _mean(np.exp(rows.answer_logprob_N[is_key_N])),
        "answer_probability_at_normal_tokens": _mean(np.exp(rows.answer_logprob_N[~is_key_N])),
    }


def num_bytes(root: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None
