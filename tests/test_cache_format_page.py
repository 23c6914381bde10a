"""docs/cache-format.md is enough: what it says is what is on disk, read here with nothing of viker's."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import viker
import zarr
from viker.precompute.cache import TeacherCache, fingerprint_key, lineage_of, person_digest, row_key, token_hash
from viker.precompute.reading.identity import FIELD_RULES, rules_table
from viker.precompute.reading.layout import ARRAYS
from viker.tests.cache_samples import make_fingerprint, make_samples

PAGE = (Path(viker.__file__).parent / "docs" / "cache-format.md").read_text(encoding="utf-8")
(GOLDEN,) = (Path(__file__).parent / "golden" / "cache").iterdir()


def table(name: str) -> list[list[str]]:
    """The rows of a marked table, without its two head lines."""
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", PAGE, flags=re.DOTALL)
    lines = found.group(1).splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_the_page_lists_every_array_with_its_type_and_shape():
    listed = {name: (dtype, shape.replace(" ", "")) for name, dtype, shape, _ in table("arrays")}
    assert listed == ARRAYS


def test_the_page_has_the_rules_of_the_code():
    assert dict(table("rules")) == FIELD_RULES
    assert rules_table() in PAGE


def test_plain_zarr_reads_rows_as_the_page_says_without_viker():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    script = (
        f"cache = {str(GOLDEN)!r}\n{code}\nimport sys\n"
        "assert not [name for name in sys.modules if name.startswith('viker')]\n"
        "print(kept_ids.tolist(), kept.round(4).tolist())"
    )
    printed = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True).stdout
    rows = TeacherCache.open(GOLDEN).rows_of(0)
    kept = np.exp(rows.kept_logprobs_NK).round(4).tolist()
    assert printed.strip() == f"{rows.kept_ids_NK.tolist()} {kept}"


def test_every_array_of_the_fixture_is_what_plain_zarr_finds():
    group = zarr.open_group(str(GOLDEN / "cache.zarr"), mode="r", zarr_format=3)
    found = {f"{folder}/{name}" for folder, members in group.groups() for name, _ in members.arrays()}
    assert found == set(ARRAYS)
    cache = TeacherCache.open(GOLDEN)
    np.testing.assert_array_equal(group["token/kept_logprob"][:].astype(np.float32), cache.load().kept_logprobs_NK)
    np.testing.assert_array_equal(group["sample/offset"][:], cache.offset)


def test_the_codecs_on_disk_are_those_of_the_page():
    for name in ARRAYS:
        array = json.loads((GOLDEN / "cache.zarr" / name / "zarr.json").read_bytes())
        (sharding,) = array["codecs"]
        inner = sharding["configuration"]
        assert sharding["name"] == "sharding_indexed"
        assert inner["index_location"] == "end"
        assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
        assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        blosc = inner["codecs"][1]["configuration"]
        itemsize = np.dtype(array["data_type"]).itemsize
        assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 2, "bitshuffle")
        assert blosc["typesize"] == itemsize
        assert array["fill_value"] in ("NaN", np.iinfo(array["data_type"]).max if array["data_type"][0] in "iu" else 0)
        assert array["attributes"] == {}


def test_keys_and_digests_follow_from_the_page_alone():
    fingerprint, prompt, answer = make_fingerprint(), [1, 2, 70000], [3, 4]
    ids = b"".join(number.to_bytes(8, "little") for number in (len(prompt), len(answer), *prompt, *answer))
    lineage = hashlib.sha256(canonical({name: fingerprint[name] for name in fingerprint if name != "rows"})).digest()
    plain = hashlib.blake2b(ids, digest_size=16, person=b"viker/row-key/1")
    shown = hashlib.blake2b(ids + b"ab" * 32, digest_size=16, person=b"viker/row-key/1")
    assert fingerprint_key(fingerprint) == hashlib.sha256(canonical(fingerprint)).hexdigest()
    assert lineage_of(fingerprint) == lineage.hex()
    assert row_key(prompt, answer, None) == plain.digest()
    assert row_key(prompt, answer, "ab" * 32) == shown.digest()
    named = hashlib.blake2b("Zoë".encode(), digest_size=16, key=lineage)
    assert person_digest(lineage.hex(), "Zoë") == named.digest()
    hashed = hashlib.blake2b(ids, digest_size=8, key=lineage).digest()
    assert token_hash(lineage.hex(), prompt, answer) == int.from_bytes(hashed, "little")


def test_the_lineage_does_not_depend_on_the_rows():
    one, other = make_fingerprint(rows="11" * 32), make_fingerprint(rows="22" * 32)
    assert fingerprint_key(one) != fingerprint_key(other)
    assert make_samples(lineage_of(one), [2, 3]) == make_samples(lineage_of(other), [2, 3])
    assert lineage_of(one) != lineage_of(make_fingerprint(weights="ff" * 32))


def test_root_and_key_of_the_fixture_follow_from_the_page_alone():
    manifest = json.loads((GOLDEN / "manifest.json").read_bytes())
    lines = sorted(f"{file['sha256']}  {file['path']}\n" for file in manifest["files"])
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == manifest["root_sha256"]
    assert hashlib.sha256((GOLDEN / "fingerprint.json").read_bytes()).hexdigest() == manifest["key"]
    assert [file["path"] for file in manifest["files"]] == sorted(file["path"] for file in manifest["files"])
    assert (GOLDEN / "manifest.json").read_bytes() == canonical(manifest) + b"\n"
