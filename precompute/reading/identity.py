"""What a cache is the cache of: its key, the digests of its samples, and when one cache may serve another's request.

Only content is hashed, so a hub id and a local copy share a key. The rules are one table, so that the answer to "may
these rows be used here?" is data that a reader and a test can see whole; fields the table does not know must be equal.
Which directories to ask is `cache.py`'s business; making a fingerprint is the stages'.
"""

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ...data.example import canonical_json
from .layout import STORAGE

FINGERPRINT_SCHEMA = "viker/fingerprint/1"

Fingerprint = dict[str, Any]  # parsed JSON: nested, without floats
Names = Collection[str]

Rule = Literal["equal", "equal-if-named", "covers", "may-differ", "overridable"]
FIELD_RULES: dict[str, Rule] = {
    "schema": "equal",
    "weights": "overridable",  # the teacher may be an ancestor of the student: a second deletion request
    "tokenizer": "equal",
    "processor": "equal",
    "rendering": "equal",
    "objective": "equal",
    "objective.top_k": "covers",
    "intervention": "equal",
    "draw": "equal-if-named",
    "pool": "equal-if-named",
    "storage": "equal-if-named",
    "teacher_dtype": "may-differ",
    "quantization": "equal-if-named",
    "rows": "covers",  # a digest cannot say so: the row keys are compared when the cache is opened
    "vocab_size": "equal",
}
ABSENT = "(absent)"
TEXTS = ("weights", "tokenizer", "teacher_dtype", "rows")  # fields that are read as text


class Comparison(NamedTuple):
    """The fields of two fingerprints that forbid use and those that only need saying: field -> (cached, wanted)."""

    mismatches: dict[str, tuple[Any, Any]]
    reported: dict[str, tuple[Any, Any]]


def make_fingerprint(
    model: Mapping[str, Any],
    intervention: Mapping[str, Any],
    *,
    top_k: int,
    vocab_size: int,
    teacher_dtype: str,
    logprob_dtype: str,
    row_keys: Collection[bytes],
) -> Fingerprint:
    """Return the fingerprint of a cache.

    Args:
        model: weights, tokenizer, processor and rendering, as `models/identity.py` digests them; `quantization` too
            where they are loaded in few bits.
        intervention: intervention, draw and pool, as `models/interventions.py` states them.
        top_k: tokens kept a row.
        vocab_size: width of the model's logits.
        teacher_dtype: what the teacher computes in.
        logprob_dtype: storage type of the kept log-probabilities.
        row_keys: the row keys the cache holds, in any order.
    """
    return {
        "schema": FINGERPRINT_SCHEMA,
        "quantization": None,
        **model,
        "objective": {"average": "probability", "temperature": "1", "top_k": top_k, "tail": "bucket"},
        **intervention,
        "teacher_dtype": teacher_dtype,
        "storage": {"ids": "uint16" if vocab_size <= 65535 else "uint32", "logprobs": logprob_dtype},
        "rows": rows_digest(row_keys),
        "vocab_size": vocab_size,
    }


def rows_digest(row_keys: Collection[bytes]) -> str:
    """Return the fingerprint's `rows`: the hex digest of the distinct row keys a cache holds, in any order."""
    return hashlib.sha256(b"".join(sorted(set(row_keys)))).hexdigest()


def fingerprint_key(fingerprint: Fingerprint) -> str:
    """Return the key of a cache: the hex sha256 of the fingerprint's canonical JSON, which is fingerprint.json."""
    assert not _holds_float(fingerprint), "floats differ between writers: a fingerprint holds them as text"
    return hashlib.sha256(canonical_json(fingerprint)).hexdigest()


def lineage_of(fingerprint: Fingerprint) -> str:
    """Return the digest of a fingerprint without its rows: what a cache and those derived from it share.

    Persons and tokens are digested under it rather than under the key, so that a cache that gains or loses rows keeps
    its digests although nobody has the names and the tokens of all its samples at hand.
    """
    return hashlib.sha256(
        canonical_json({name: fingerprint[name] for name in fingerprint if name != "rows"})
    ).hexdigest()


def row_key(prompt_ids: Sequence[int], answer_ids: Sequence[int], pixels_digest: str | None) -> bytes:
    """Return the 16-byte digest of what decides a sample's rows.

    Args:
        prompt_ids: ids of the example's own prompt with one placeholder an image, unexpanded.
        answer_ids: ids of the answer tokens.
        pixels_digest: what `models/interventions.py` digests of the example's own images, None where it is nothing.
    """
    digest = hashlib.blake2b(_token_bytes(prompt_ids, answer_ids), digest_size=16, person=b"viker/row-key/1")
    digest.update(b"" if pixels_digest is None else pixels_digest.encode())
    return digest.digest()


def person_digest(lineage: str, person: str) -> bytes:
    """Return the 16-byte digest of a person's id, keyed by the cache's lineage: enough to find, not to read."""
    return hashlib.blake2b(person.encode(), digest_size=16, key=bytes.fromhex(lineage)).digest()


def token_hash(lineage: str, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> int:
    """Return the 64-bit digest of a sample's unexpanded ids, keyed by the lineage: enough to align, not to read."""
    digest = hashlib.blake2b(_token_bytes(prompt_ids, answer_ids), digest_size=8, key=bytes.fromhex(lineage)).digest()
    return int.from_bytes(digest, "little")


def compare(cached: Fingerprint, wanted: Fingerprint, named: Names, overridden: Names = ()) -> Comparison:
    """Compare a cache's fingerprint with a wanted one by FIELD_RULES.

    Args:
        cached: fingerprint of the cache.
        wanted: fingerprint asked for; may lack fields that are equal only if named.
        named: fields the user named, dotted (`draw.seed`) or whole (`draw`).
        overridden: overridable fields that the user allows to differ.
    """
    ours, theirs = _flatten(wanted), _flatten(cached)
    comparison = Comparison({}, {})
    for field in sorted(ours.keys() | theirs.keys()):
        values = (theirs.get(field, ABSENT), ours.get(field, ABSENT))
        if values[0] == values[1]:
            continue
        permitted = _permits(field, *values, _names(field, named), _names(field, overridden))
        (comparison.reported if permitted else comparison.mismatches)[field] = values
    return comparison


def rule_of(field: str) -> Rule:
    """Return the rule of a dotted field: its own, else its parent's, else equality."""
    return FIELD_RULES.get(field) or FIELD_RULES.get(field.partition(".")[0], "equal")


def rules_table() -> str:
    """Return FIELD_RULES as the lines of a Markdown table, for docs/cache-format.md."""
    lines = [f"| `{field}` | {rule} |" for field, rule in FIELD_RULES.items()]
    return "\n".join(["| field | rule |", "|---|---|", *lines])


def show_differences(differences: dict[str, tuple[Any, Any]]) -> str:
    """Return one aligned line a differing field with both values."""
    width = max(map(len, differences), default=0)
    return "\n".join(
        f"  {field:{width}}  cache {ours}  wanted {theirs}" for field, (ours, theirs) in differences.items()
    )


def _permits(field: str, cached: Any, wanted: Any, named: bool, overridden: bool) -> bool:
    match rule_of(field):
        case "equal":
            return False
        case "equal-if-named":
            return not named
        case "overridable":
            return overridden
        case "may-differ":
            return True
        case "covers":
            return field == "rows" or (isinstance(cached, int) and isinstance(wanted, int) and cached >= wanted)


def _names(field: str, fields: Names) -> bool:
    return field in fields or field.partition(".")[0] in fields


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flatten(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat


def _holds_float(value: Any) -> bool:
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return isinstance(value, float) or any(map(_holds_float, items))


def _token_bytes(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> bytes:
    """Return ids as bytes that differ whenever the prompt or the answer differs."""
    lengths = struct.pack("<2Q", len(prompt_ids), len(answer_ids))
    return lengths + struct.pack(f"<{len(prompt_ids) + len(answer_ids)}q", *prompt_ids, *answer_ids)


def is_fingerprint(value: Any) -> bool:
    """Tell whether a parsed fingerprint.json has the fields that somebody reads, each of a sane type and size."""
    try:
        storage, top_k, vocab_size = value["storage"], value["objective"]["top_k"], value["vocab_size"]
        num_references, pool = value["draw"]["num_references"], value["pool"]
        numbers = all(type(number) is int for number in (top_k, vocab_size, num_references))
        known = storage.keys() == STORAGE.keys() and all(storage[name] in STORAGE[name] for name in STORAGE)
        fits = 0 <= top_k <= vocab_size < 2**32 and 0 <= num_references < 2**16
        wide = vocab_size <= 65535 or storage["ids"] == "uint32"
        named = pool is None or isinstance(pool, str)
        told = all(isinstance(value[name], str) for name in TEXTS) and isinstance(value["rendering"], dict)
        told = told and isinstance(value["intervention"]["kind"], str) and not _holds_float(value)
        return bool(numbers and known and fits and wide and named and told)
    except (KeyError, TypeError, AttributeError):
        return False
