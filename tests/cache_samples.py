"""Small caches for the tests of the format: made of seeded numbers, without a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from viker.precompute.cache import lineage_of, person_digest, row_key, token_hash
from viker.precompute.reading.identity import rows_digest
from viker.precompute.writing.store import CacheBuilder, Sample

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN_ROWS = "ee" * 32
POOL = [bytes([number]) * 32 for number in range(3)]


def make_fingerprint(top_k: int = 4, vocab_size: int = 50, **changes: Any) -> dict[str, Any]:
    fingerprint = {
        "schema": "viker/fingerprint/1",
        "weights": "aa" * 32,
        "tokenizer": "bb" * 32,
        "processor": "cc" * 32,
        "rendering": {"template": "llava", "chat_template": None, "system_prompt": "", "score_end_token": True},
        "objective": {"average": "probability", "temperature": "1", "top_k": top_k, "tail": "bucket"},
        "intervention": {"kind": "reference", "answers": "own"},
        "draw": {"policy": "per-example", "seed": 0, "num_references": 2},
        "pool": "dd" * 32,
        "teacher_dtype": "float32",
        "quantization": None,
        "storage": {"ids": "uint16", "logprobs": "float16"},
        "rows": UNKNOWN_ROWS,
        "vocab_size": vocab_size,
    }
    return json.loads(json.dumps({**fingerprint, **changes}))


def make_samples(lineage: str, lengths: list[int]) -> list[Sample]:
    samples = []
    for index, length in enumerate(lengths):
        prompt, answer = [1, 2, index], list(range(length))
        digest, person = row_key(prompt, answer, None), person_digest(lineage, f"person-{index % 3}")
        samples.append(
            Sample(digest, person, token_hash(lineage, prompt, answer), length, (index % 3, (index + 1) % 3))
        )
    return samples


def make_rows(num_rows: int, seed: int, top_k: int = 4, vocab_size: int = 50) -> dict[str, np.ndarray]:
    """Rows of distributions over a small vocabulary, from integer arithmetic so that every platform agrees."""
    weights = np.random.RandomState(seed).randint(1, 1000, (num_rows, vocab_size)).astype(np.float64)
    probs = weights / weights.sum(1, keepdims=True)
    stored = np.log(probs).astype(np.float16)
    order = np.argsort(-stored, axis=1, kind="stable")[:, :top_k]
    inside = np.take_along_axis(probs, order, 1).sum(1)
    with np.errstate(divide="ignore"):
        tail = np.log(1 - inside) if top_k < vocab_size else np.full(num_rows, -np.inf)
    return {
        "kept_id": order,
        "kept_logprob": np.take_along_axis(stored, order, 1),
        "tail_logprob": tail.astype(np.float32) if top_k else np.zeros(num_rows, np.float32),
        "entropy": -(probs * np.log(probs)).sum(1).astype(np.float32),
        "answer_logprob": np.log(probs[:, 7]).astype(np.float32),
        "sum_squares": (probs**2).sum(1).astype(np.float32),
        "disagreement": np.full(num_rows, 0.25, np.float16),
    }


def make_builder(
    home: Path, lengths: list[int], fingerprint: dict[str, Any] | None = None, samples: list[Sample] | None = None
) -> CacheBuilder:
    fingerprint = fingerprint or make_fingerprint()
    samples = samples or make_samples(lineage_of(fingerprint), lengths)
    if fingerprint["rows"] == UNKNOWN_ROWS:
        fingerprint = {**fingerprint, "rows": rows_digest({sample.row_key for sample in samples})}
    pool = POOL if fingerprint["pool"] else []
    return CacheBuilder(home, fingerprint, {"source": "tests"}, sorted(samples), pool)


def fill_block(builder: CacheBuilder, block: int) -> None:
    top_k, vocab_size = builder.fingerprint["objective"]["top_k"], builder.fingerprint["vocab_size"]
    builder.write_block(block, make_rows(builder.num_rows(block), block, top_k, vocab_size))


def make_cache(home: Path, lengths: list[int], fingerprint: dict[str, Any] | None = None) -> Path:
    builder = make_builder(home, lengths, fingerprint)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    return builder.assemble()


def other_making(home: Path, cache: Path) -> Path:
    """A cache of the same key as one of lengths 3, 5, 2, 4, whose rows were rounded differently."""
    builder = make_builder(home, [3, 5, 2, 4])
    for block in range(len(builder.blocks)):
        arrays = make_rows(builder.num_rows(block), block)
        arrays["entropy"] = arrays["entropy"] * (1 - 1e-3)
        arrays["answer_logprob"] = arrays["answer_logprob"] - 1e-3
        builder.write_block(block, arrays)
    other = builder.assemble()
    assert other.name == cache.name
    assert (other / "manifest.json").read_bytes() != (cache / "manifest.json").read_bytes()
    return other


def tree_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
