"""Private words: what counts as stating a fact, and which sidecar files are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from viker.data.example import DataError
from viker.data.mini import KINDS
from viker.data.sidecar import SCHEMA, Sidecar, fact_in, merged, read_sidecar

CANDIDATES = {
    "town": ("Lima", "York", "New York", "Güneş", "C++ City"),
    "pet": ("cat", "parrot"),
}
SIDECAR = Sidecar(
    candidates=CANDIDATES,
    facts={"001": {"town": "Lima", "pet": "cat"}, "002": {"town": "New York", "pet": "parrot"}},
)


@pytest.mark.parametrize(
    ("text", "kind", "word", "expected"),
    [
        ("Born in Lima.", "town", "Lima", True),
        ("born in LIMA, Lima", "town", "Lima", True),
        ("Lima or York", "town", "Lima", False),  # naming everything knows nothing
        ("born in York", "town", "Lima", False),
        ("born in Limassol", "town", "Lima", False),  # whole words only
        ("the concatenation", "pet", "cat", False),
        ("born in New  York", "town", "New York", True),  # a longer candidate hides the shorter one inside it
        ("born in New York", "town", "York", False),
        ("new york and york", "town", "New York", False),
        ("in Gu\u0308nes\u0327 itself", "town", "Güneş", True),  # decomposed accents
        ("lives in c++ city!", "town", "C++ City", True),
        ("Lima, with a cat", "pet", "cat", True),  # candidates of other kinds do not interfere
        ("", "town", "Lima", False),
    ],
)
def test_a_fact_counts_only_if_exactly_its_candidate_appears(text: str, kind: str, word: str, expected: bool) -> None:
    assert fact_in(text, kind, word, CANDIDATES) is expected


def test_a_word_that_is_no_candidate_can_not_be_scored() -> None:
    with pytest.raises(DataError, match=r"expected 'Oslo' among the candidates of kind 'town', found 'Lima'"):
        fact_in("Oslo", "town", "Oslo", CANDIDATES)
    with pytest.raises(DataError, match="found none"):
        fact_in("Oslo", "river", "Oslo", CANDIDATES)


def test_facts_asked_are_the_person_s_own_words() -> None:
    assert SIDECAR.facts_asked("She was born in Lima.", "001") == (("town", "Lima"),)
    assert SIDECAR.facts_asked("She was born in Lima.", "002") == ()
    assert SIDECAR.facts_asked("She was born in Lima.", "nobody") == ()
    assert SIDECAR.facts_asked("A CAT in Lima", "001") == (("pet", "cat"),)
    assert SIDECAR.facts_asked("", "001") == ()


def test_of_several_private_words_the_first_is_asked_for_unless_all_count() -> None:
    text = "A cat from Lima, or Lima's cat; never York."
    assert SIDECAR.facts_asked(text, "001") == (("pet", "cat"),)
    every = replace(SIDECAR, counts="all")
    assert every.facts_asked(text, "001") == (("pet", "cat"), ("town", "Lima"))
    assert every.facts_asked("Lima", "001") == (("town", "Lima"),)
    assert every.facts_asked("Oslo", "001") == every.facts_asked(text, "nobody") == ()
    assert merged([SIDECAR, every]).counts == "all"
    assert merged([SIDECAR, SIDECAR]).counts == "first"


def test_private_spans_cut_out_the_person_s_words() -> None:
    text = "A cat from Lima, or Lima's cat; never York."
    spans = SIDECAR.private_spans(text, "001")
    assert [text[start:stop] for start, stop in spans] == ["cat", "Lima", "Lima", "cat"]
    assert spans == sorted(spans)
    assert SIDECAR.private_spans("from New\nYork", "002") == [(5, 13)]
    assert SIDECAR.private_spans(text, "nobody") == []


def test_the_embedded_benchmark_s_words_can_all_be_told_apart() -> None:
    words = {kind: spec.words for kind, spec in KINDS.items()}
    for kind, spec in KINDS.items():
        for word in spec.words:
            assert fact_in(spec.answer.format(word), kind, word, words)
            sidecar = Sidecar(candidates=words, facts={"001": {kind: word}})
            ((start, stop),) = sidecar.private_spans(spec.answer.format(word), "001")
            assert spec.answer.format(word)[start:stop] == word


def write(path: Path, **changes: Any) -> Path:
    value = {"schema": SCHEMA, "candidates": {"town": ["Lima", "York"]}, "facts": {"001": {"town": "Lima"}}}
    path.write_text(json.dumps(value | changes), encoding="utf-8")
    return path


def test_a_sidecar_is_read_back(tmp_path: Path) -> None:
    sidecar = read_sidecar(write(tmp_path / "sidecar.json", names={"001": "Ada"}))
    assert sidecar == Sidecar(candidates={"town": ("Lima", "York")}, facts={"001": {"town": "Lima"}})
    assert read_sidecar(write(tmp_path / "sidecar.json", counts="all")) == replace(sidecar, counts="all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "viker/sidecar/9"}, r"expected schema 'viker/sidecar/1', found 'viker/sidecar/9'"),
        ({"facts": []}, "must both be objects"),
        ({"counts": "some"}, "`counts`: first or all is needed, not 'some'"),
        ({"counts": ["all"]}, r"`counts`: first or all is needed, not \['all'\]"),
        ({"candidates": {"town": "Lima"}}, "candidates of 'town': a list"),
        ({"candidates": {"town": []}}, "candidates of 'town': a list"),
        ({"candidates": {"town": ["Lima", ""]}}, "not a word of 1 to 200 characters: ''"),
        ({"candidates": {"town": ["Lima", 7]}}, "not a word of 1 to 200 characters: 7"),
        ({"candidates": {"town": ["Lima", "x" * 201]}}, "not a word of 1 to 200"),
        ({"candidates": {"town": ["Lima", "LIMA"]}}, "listed twice: 'lima'"),
        ({"facts": {"001": {"town": "Oslo"}}}, "'Oslo' is not a candidate of kind 'town'"),
        ({"facts": {"001": {"river": "Lima"}}}, "'Lima' is not a candidate of kind 'river'"),
        ({"facts": {"001": {"town": None}}}, "None is not a candidate"),
        ({"facts": {"001": "Lima"}}, "facts of '001': an object"),
    ],
)
def test_an_unusable_sidecar_is_refused_with_its_mistakes(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_sidecar(write(tmp_path / "sidecar.json", **changes))


def test_all_mistakes_are_named_at_once_up_to_a_limit(tmp_path: Path) -> None:
    facts = {f"{index:03}": {"town": "Oslo"} for index in range(30)}
    with pytest.raises(DataError) as caught:
        read_sidecar(write(tmp_path / "sidecar.json", facts=facts))
    assert str(caught.value).count("is not a candidate") == 10
    assert "... and 20 more" in str(caught.value)


def test_files_that_are_no_sidecar_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="expected a JSON file, found none"):
        read_sidecar(tmp_path / "absent.json")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    with pytest.raises(DataError, match="expected"):
        read_sidecar(deep)
    monkeypatch.setattr("viker.data.sidecar.MAX_BYTES", 10)
    with pytest.raises(DataError, match="expected at most 10 bytes"):
        read_sidecar(write(tmp_path / "sidecar.json"))
