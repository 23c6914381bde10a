"""The key-token view: what models kept of next tokens is theirs, rows are the cache's, and what is missing is said.

One run of the ordinary commands: an untrained model as vanilla and retain-only, rows under two patterns, one person of
the two to be forgotten asked for. Every test looks at that run, or at a copy that it changes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import call, succeed
from family_work import EXAMPLES, each
from viker.data.artefact import MARKER
from viker.data.example import DataError
from viker.data.sidecar import read_sidecar
from viker.data.sources import open_source
from viker.evaluate import token_candidates
from viker.evaluate.report import token_texts
from viker.evaluate.report.run import read_run
from viker.evaluate.report.tokens import tokens_section
from viker.evaluate.runner import Once
from viker.evaluate.token_candidates import MOST_EXAMPLES, candidate_lines, keep_candidates, training_answers
from viker.evaluate.token_lines import (
    FILE,
    About,
    TokenLine,
    read_lines,
    spread_over_people,
    text_behind,
    write_lines,
)
from viker.models.encode import answer_rows, collate
from viker.precompute.cache import TeacherCache

if TYPE_CHECKING:
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded

SMALL = ("--limit", 1, "--max-new-tokens", 4, "--task", "cloze", "--task", "generation", "--no-fluency")


class Place:
    """A run, its caches, and what evaluates it."""

    def __init__(self, folder: Path, world: Path) -> None:
        self.run, self.home, self.world = folder / "run", folder / "caches", world

    @property
    def source(self) -> tuple[object, ...]:
        return "--run", self.run, "--data", self.world

    def kept(self, name: str = "vanilla") -> Path:
        return self.run / "evaluations" / name / FILE

    def section(self) -> dict[str, Any]:
        return tokens_section(read_run(self.run))

    def cache(self) -> TeacherCache:
        (manifest,) = self.home.glob("*/manifest.json")
        return TeacherCache.open(manifest.parent)


@pytest.fixture(scope="module")
def original(
    tmp_path_factory: pytest.TempPathFactory, mini_world: Path, tiny_model_dir: Path, quiet_torch: None
) -> Place:
    place = Place(tmp_path_factory.mktemp("tokens"), mini_world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIKER_CACHE_DIR", str(place.home))
        for name in ("vanilla", "retain-only"):
            shutil.copytree(tiny_model_dir, place.run / name)
        (place.run / "retain-only" / "provenance.json").write_text('{"finished": "now"}')
        (place.run / "retain-only" / MARKER).write_text("complete\n")
        vanilla = ("--model", place.run / "vanilla", "--pool", "patterns", "--num-references", 2, "--top-k", 16)
        succeed("precompute", *place.source, *vanilla)
        told = succeed("evaluate", *place.source, *SMALL)
    assert "training answers with a picture are kept, 12 others are left out" in told.err, "of the second person"
    shutil.rmtree(place.home / ".runs", ignore_errors=True)  # copies must not lead back to this run
    (place.run / "retain-only" / MARKER).unlink()
    return place


@pytest.fixture
def place(original: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(original.run.parent, tmp_path / "place")
    copy = Place(tmp_path / "place", original.world)
    monkeypatch.setenv("VIKER_CACHE_DIR", str(copy.home))
    monkeypatch.chdir(tmp_path)
    return copy


def about_one_person(world: Path) -> list[Example]:
    asked = list(open_source(str(world)).training("forget"))
    return [example for example in asked if example.people == asked[0].people]


# ---- what a model sees -----------------------------------------------------------------------------------------------


def plain(loaded: Loaded, example: Example) -> torch.Tensor:
    """Log-probabilities [M, V] of next tokens, by the plainest forward pass there is."""
    row = loaded.encoder.encode(example)
    inputs = collate([row], pad_id=loaded.encoder.pad_id, side="right")
    _, position_M, _ = answer_rows([row])
    with torch.inference_mode():
        return loaded.model(**inputs).logits[0, position_M].double().log_softmax(-1)


def require_plain(loaded: Loaded, examples: list[Example], lines: list[TokenLine]) -> None:
    for example, line in zip(examples, lines, strict=True):
        logprob_MV = plain(loaded, example)
        assert len(line.tokens) == len(logprob_MV)
        for token, logprob_V in zip(line.tokens, logprob_MV, strict=True):
            best = logprob_V.topk(5).values.tolist()
            assert [logprob for _, _, logprob in token.candidates] == pytest.approx(best, abs=2e-3)
            for id_, _, logprob in token.candidates:
                assert logprob == pytest.approx(float(logprob_V[id_]), abs=2e-3)
            assert token.logprob == pytest.approx(float(logprob_V[token.id]), abs=2e-3)
            assert token.entropy == pytest.approx(float(-(logprob_V.exp() * logprob_V).sum()), abs=5e-3)


def test_candidates_are_those_of_a_plain_forward_pass(tiny: Loaded, mini_world: Path) -> None:
    examples = about_one_person(mini_world)
    lines = candidate_lines(tiny, examples, batch_size=4)
    require_plain(tiny, examples, lines)
    assert len({token.entropy for line in lines for token in line.tokens}) > 10, "or nothing is tested"
    rows = [tiny.encoder.encode(example) for example in examples]
    assert [[token.id for token in line.tokens] for line in lines] == [[*row.answer_ids] for row in rows]


@each
def test_every_family_can_be_asked(family: Loaded) -> None:
    examples = list(EXAMPLES[:2])
    require_plain(family, examples, candidate_lines(family, examples, batch_size=2))


def test_texts_add_up_to_the_answer_and_words_are_its_words(tiny: Loaded, mini_world: Path) -> None:
    for line in candidate_lines(tiny, about_one_person(mini_world), batch_size=32):
        texts = [token.text for token in line.tokens]
        assert "".join(texts).removesuffix("</s>") == line.answer
        assert [line.answer[start:stop] for *_, start, stop in line.words] == line.answer.split()
        for first, last, start, stop in line.words:
            assert line.answer[start:stop] in "".join(texts[first : last + 1])


def test_a_token_is_written_as_it_stands_behind_the_one_before() -> None:
    pieces = {1: "\u2581the", 2: "\u2581cat", 3: "s", 4: ""}

    def decode(ids: list[int]) -> str:
        return "".join(pieces[id_] for id_ in ids).replace("\u2581", " ").removeprefix(" ")

    assert decode([2]) == "cat", "sentence pieces lose the space in front"
    assert [text_behind(decode, before, 2) for before in (None, 1, 3)] == ["cat", " cat", " cat"]
    assert text_behind(decode, 2, 3) == "s"
    assert text_behind(decode, 2, 4) == text_behind(decode, None, 4) == "#4", "no text, so its number"


def test_logits_are_looked_at_a_few_rows_at_a_time(
    tiny: Loaded, mini_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viker.evaluate import generate

    seen: list[int] = []
    likeliest = token_candidates._likeliest

    def counted(logits_mV: torch.Tensor, ids_m: torch.Tensor) -> Any:
        seen.append(len(logits_mV))
        return likeliest(logits_mV, ids_m)

    monkeypatch.setattr(generate, "LOGITS_AT_ONCE", 7 * tiny.model.config.get_text_config().vocab_size)
    monkeypatch.setattr(token_candidates, "_likeliest", counted)
    examples = about_one_person(mini_world)
    require_plain(tiny, examples, candidate_lines(tiny, examples, batch_size=32))
    assert max(seen) == 7


def test_a_model_that_gives_no_numbers_is_an_error_that_says_so(trainable: Any, tiny: Loaded, mini_world: Path) -> None:
    trainable.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(DataError, match="expected finite log-probabilities of next tokens, found nan"):
        candidate_lines(dataclasses.replace(tiny, model=trainable), about_one_person(mini_world)[:1], batch_size=1)


# ---- whom is asked ---------------------------------------------------------------------------------------------------


def abouts(people: int, each_: int) -> list[About]:
    return [
        About(f"{person}/{number}", f"p{person}", f"question {number}", f"answer {number // 2}")
        for person in range(people) for number in range(each_)
    ]  # fmt: skip


def test_people_and_kinds_take_turns() -> None:
    answers = abouts(6, 12)
    chosen = spread_over_people(answers, 24, seed=0)
    assert chosen == sorted(set(chosen))
    assert set(Counter(answers[place].person for place in chosen).values()) == {4}
    assert set(Counter(answers[place].question for place in chosen).values()) == {2}
    said = [(answers[place].person, answers[place].answer) for place in chosen]
    assert len(said) == len(set(said)), "no answer twice while there are others"


def test_who_is_chosen_depends_on_seed_and_ids_alone() -> None:
    answers = abouts(5, 7)
    chosen = {answers[place].id for place in spread_over_people(answers, 11, seed=3)}
    backwards = answers[::-1]
    assert {backwards[place].id for place in spread_over_people(backwards, 11, seed=3)} == chosen
    assert {answers[place].id for place in spread_over_people(answers, 11, seed=4)} != chosen
    assert spread_over_people(answers, 99, seed=3) == list(range(35))
    assert spread_over_people([], 3, seed=3) == []


def test_no_more_than_the_most_are_asked(mini_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"data": str(mini_world), "ratio": 15, "forget": (), "data_revision": None, "limit": None, "seed": 0}
    told = list(open_source(str(mini_world), ratio=15).training("forget"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_candidates, "MOST_EXAMPLES", 8)
        chosen = training_answers(options)
    assert (len(told) > 8, len(chosen), MOST_EXAMPLES) == (True, 8, 64)
    assert (
        f"of 8 training answers with a picture are kept, {len(told) - 8} others are left out" in capsys.readouterr().err
    )
    assert [one.id for one in training_answers(options)] == [one.id for one in told]
    assert capsys.readouterr().err == "", "nothing is left out, so nothing is said"


# ---- the hook --------------------------------------------------------------------------------------------------------


def test_every_evaluation_keeps_them_and_is_complete_after(original: Place) -> None:
    kept = {name: read_lines(original.kept(name)) for name in ("vanilla", "retain-only")}
    assert {line.person for line in kept["vanilla"]} == {min(open_source(str(original.world)).forget_people())}
    assert [line.id for line in kept["vanilla"]] == [line.id for line in kept["retain-only"]]
    assert len(kept["vanilla"]) == 12
    marker = original.kept().parent / MARKER
    assert marker.stat().st_mtime_ns >= original.kept().stat().st_mtime_ns


def test_an_evaluation_without_a_run_keeps_them_and_rescoring_leaves_them(place: Place, tmp_path: Path) -> None:
    alone = ("--model", place.run / "vanilla", "--output", tmp_path / "alone", "--data", place.world, *SMALL)
    succeed("evaluate", *alone)
    assert (tmp_path / "alone" / FILE).read_bytes() == place.kept().read_bytes()
    succeed("evaluate", *alone, "--rescore")
    assert (tmp_path / "alone" / FILE).read_bytes() == place.kept().read_bytes()
    (tmp_path / "alone" / FILE).unlink()
    assert "complete, skipped" in succeed("evaluate", *alone).out, "as an evaluation made before there were any"


def test_an_evaluation_made_before_is_named(place: Place) -> None:
    place.kept().unlink()
    section = place.section()
    assert section["models"] == ["retain-only"]
    assert section["notes"] == [f"Without {FILE}, so not in this view (evaluate again with --overwrite): vanilla."]
    place.kept("retain-only").unlink()
    assert "no evaluation of this run kept its next-token candidates" in place.section()["reason"]


def test_what_a_kill_left_behind_is_written_again(place: Place) -> None:
    (place.kept().parent / MARKER).unlink()
    whole = place.kept().read_bytes()
    place.kept().write_bytes(whole[: len(whole) // 2])
    succeed("evaluate", *place.source, *SMALL)
    assert place.kept().read_bytes() == whole


def test_with_vllm_and_no_model_here_nothing_is_kept_and_it_is_said(
    tmp_path: Path, mini_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> Loaded:
        raise AssertionError("no model is to be loaded")

    options = {"engine": "vllm", "processes": 2, "batch_size": 2}
    keep_candidates(options, Once(load), about_one_person(mini_world), tmp_path)
    assert "no next-token candidates: with vLLM no model is loaded here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_cannot_be_encoded_is_left_out_and_named(
    tiny: Loaded, mini_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = about_one_person(mini_world)[:2]
    kept = candidate_lines(tiny, [dataclasses.replace(first, answer=" "), second], batch_size=2)
    assert [line.id for line in kept] == [second.id]
    assert first.id in capsys.readouterr().err


# ---- the section -----------------------------------------------------------------------------------------------------


def test_entropies_and_candidates_are_those_of_the_cache(place: Place) -> None:
    section, cache, lines = place.section(), place.cache(), {line.id: line for line in read_lines(place.kept())}
    assert (section["reason"], section["shown"], section["of"], section["notes"]) == (None, 12, 12, [])
    assert section["teacher"] == {
        "kind": "reference", "num_references": 2, "top_k": 16, "key": cache.key, "root": cache.root_digest
    }  # fmt: skip
    tokenizer = json.loads((place.run / "vanilla" / "tokenizer.json").read_text())["model"]["vocab"]
    spelt = {id_: piece.replace("\u0120", " ") for piece, id_ in tokenizer.items()}
    for example in section["examples"]:
        line = lines[example["id"]]
        rows = cache.rows_of(cache.find_row(bytes.fromhex(line.row_key)))
        assert [token["entropy"] for token in example["tokens"]] == pytest.approx(rows.entropy_N.tolist(), abs=1e-4)
        disagreements = [token["disagreement"] for token in example["tokens"]]
        assert disagreements == pytest.approx(rows.disagreement_N.tolist(), abs=1e-4)
        for token, ids_K, logprobs_K, own in zip(
            example["tokens"], rows.kept_ids_NK, rows.kept_logprobs_NK, rows.answer_logprob_N, strict=True
        ):
            assert [p for _, p in token["teacher"]] == pytest.approx(np.exp(logprobs_K[:5]).tolist(), abs=1e-4)
            pieces = [spelt.get(int(id_), "</s>") for id_ in ids_K[: len(token["teacher"])]]
            for (text, _), piece in zip(token["teacher"], pieces, strict=True):
                assert text == piece or not piece.isascii(), "bytes that are no letters are spelt otherwise"
            assert token["answer_prob"]["teacher"] == pytest.approx(math.exp(own), abs=1e-4)


def test_models_stand_beside_the_teacher(place: Place) -> None:
    section = place.section()
    assert section["models"] == ["vanilla", "retain-only"]
    lines = {name: {line.id: line for line in read_lines(place.kept(name))} for name in section["models"]}
    for example in section["examples"]:
        for place_, token in enumerate(example["tokens"]):
            assert list(token["models"]) == section["models"]
            for name in section["models"]:
                kept = lines[name][example["id"]].tokens[place_]
                shown = [(text, round(math.exp(logprob), 4)) for _, text, logprob in kept.candidates]
                assert (
                    list(map(tuple, token["models"][name])) == [one for one in shown if one[1] > 0] or len(shown) == 1
                )
                assert token["answer_prob"][name] == round(math.exp(kept.logprob), 4)


def test_words_are_as_uncertain_as_their_most_uncertain_token(place: Place) -> None:
    section = place.section()
    facts = read_sidecar(place.world / "sidecar.json")
    (place.run / "data").mkdir()
    shutil.copy(place.world / "sidecar.json", place.run / "data")
    marked = place.section()
    assert all("is_private" not in word for example in section["examples"] for word in example["words"])
    for example in marked["examples"]:
        for word in example["words"]:
            inside = [token["entropy"] for token in example["tokens"][word["first"] : word["last"] + 1]]
            assert word["entropy"] == max(inside)
            assert word["is_key"] == (word["entropy"] > section["key_entropy"])
        private = {word["text"].strip(".,") for word in example["words"] if word["is_private"]}
        ((_, told),) = facts.facts_asked(example["answer"], example["person"])
        assert private == set(told.split())


def as_written(section: dict[str, Any]) -> int:
    """Bytes of a section's examples in `report.json`."""
    return len(json.dumps({"": {"": section["examples"]}}, indent=2, ensure_ascii=False).encode())


def test_the_section_stays_small_and_even_over_people(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from viker.evaluate.report import tokens

    whole = place.section()
    size = as_written(whole)
    monkeypatch.setattr(tokens, "MOST_BYTES", size // 2)
    half = place.section()
    assert 0 < half["shown"] < whole["shown"]
    assert half["of"] == whole["of"]
    assert as_written(half) <= size // 2 + 100
    monkeypatch.setattr(tokens, "MOST_BYTES", 1)
    assert place.section()["shown"] == 1, "one is always shown"
    monkeypatch.setattr(tokens, "MOST_EXAMPLES", 3)
    monkeypatch.setattr(tokens, "MOST_BYTES", size)
    assert place.section()["shown"] == 3


def test_key_entropy_is_what_the_adapters_were_trained_with(place: Place) -> None:
    for name, epsilon in (("one", 0.5), ("two", 0.5), ("three", 2.0)):
        adapter = place.run / "adapters" / name
        adapter.mkdir(parents=True)
        (adapter / "config.json").write_text(
            json.dumps({"schema": "viker/adapter/2", "options": {"key_entropy": epsilon}})
        )
        (adapter / "provenance.json").write_text("{}")
        (adapter / MARKER).write_text("complete\n")
        section = place.section()
        assert section["key_entropy"] == (0.5 if name != "three" else 1.0)
        assert bool(section["notes"]) is (name == "three")


def test_neither_torch_nor_transformers_is_needed(place: Place) -> None:
    program = (
        "import sys; from pathlib import Path; from viker.evaluate.report.run import read_run\n"
        "from viker.evaluate.report.tokens import tokens_section\n"
        f"assert tokens_section(read_run(Path({str(place.run)!r})))['shown'] == 12\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_without_the_cache_the_reason_is_said(place: Place) -> None:
    key16 = place.cache().key[:16]
    shutil.rmtree(place.home)
    section = place.section()
    assert (
        section["reason"]
        == f"The teacher cache {key16} is not on this machine ({place.home}): purged, or never fetched."
    )
    assert (section["examples"], section["models"]) == ([], ["vanilla", "retain-only"])


def test_a_damaged_cache_is_a_reason_not_an_exception(place: Place) -> None:
    shard = next(path for path in sorted((place.cache().root / "cache.zarr" / "token" / "entropy").rglob("c/*")))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert re.match("The teacher cache [0-9a-f]{16} cannot be read: ", place.section()["reason"])


def test_a_run_that_names_no_cache_says_so(place: Place) -> None:
    shutil.rmtree(place.run / "precompute")
    assert "no stage of this run names a teacher cache" in place.section()["reason"]


def write_adapter(place: Place, **caches: dict[str, str]) -> None:
    adapter = place.run / "adapters" / "viker-1"
    adapter.mkdir(parents=True)
    (adapter / "config.json").write_text('{"schema": "viker/adapter/2", "options": {}}')
    (adapter / "provenance.json").write_text(json.dumps({"caches": caches}))
    (adapter / MARKER).write_text("complete\n")


def test_rows_that_only_an_adapter_names_are_found(place: Place) -> None:
    stored = json.loads((place.run / "precompute" / "reference-forget" / "provenance.json").read_text())["cache"]
    shutil.rmtree(place.run / "precompute")
    write_adapter(place, log={"key": "0" * 64}, kl=stored)
    assert place.section()["shown"] == 12


def test_of_several_caches_the_one_that_counts_is_named(place: Place) -> None:
    stored = place.run / "precompute" / "reference-forget" / "provenance.json"
    key = place.cache().key
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"cache": {"key": "a" * 64}}))
    for name in ("vanilla", "retain-only"):  # so that the cache that is here has rows of nobody asked about
        lines = [json.loads(line) | {"row_key": "0" * 32} for line in place.kept(name).read_text().splitlines()]
        place.kept(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_adapter(place, retain={"key": key}, other={"key": "b" * 64})
    assert place.section()["reason"].startswith(f"The teacher cache {'a' * 16} is not on this machine")
    shutil.rmtree(place.run / "adapters")
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"cache": {"key": key}}))
    assert place.section()["reason"] == f"The teacher cache {key[:16]} has no rows of these answers."


def test_answers_without_rows_are_counted(place: Place) -> None:
    lines = place.kept().read_text().splitlines(keepends=True)
    changed = json.loads(lines[0]) | {"row_key": "0" * 32}
    for name in ("vanilla", "retain-only"):
        place.kept(name).write_text(json.dumps(changed) + "\n" + "".join(lines[1:]))
    section = place.section()
    assert (section["shown"], section["of"]) == (11, 12)
    assert section["notes"] == ["1 of 12 answers have no rows in the teacher cache, and are left out."]


def test_a_model_that_reads_other_tokens_is_left_out_by_answer(place: Place) -> None:
    lines = place.kept("retain-only").read_text().splitlines(keepends=True)
    changed = json.loads(lines[0]) | {"row_key": "0" * 32}
    place.kept("retain-only").write_text(json.dumps(changed) + "\n" + "".join(lines[1:]))
    section = place.section()
    assert section["notes"] == ["retain-only reads 1 answers as other tokens; they are left out."]
    (example,) = (one for one in section["examples"] if one["id"] == changed["id"])
    assert {name for token in example["tokens"] for name in token["models"]} == {"vanilla"}


def test_a_tokenizer_that_is_none_or_another_is_passed_over(place: Place) -> None:
    whole = place.section()
    path = place.run / "vanilla" / "tokenizer.json"
    other = json.loads(path.read_text())
    vocabulary = other["model"]["vocab"]
    (first, id_), (second, id2) = (one for one in vocabulary.items() if one[0] in ("\u0120person", "\u0120the"))
    vocabulary |= {first: id2, second: id_}
    for content in (json.dumps(other), "{"):
        path.write_text(content)
        assert place.section() == whole, "another model's is taken"


def test_without_a_tokenizer_tokens_are_shown_as_far_as_evaluations_know_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_texts, "MAX_BYTES", 0)
    section = place.section()
    assert section["shown"] == 12
    texts = [text for example in section["examples"] for token in example["tokens"] for text, _ in token["teacher"]]
    assert any(re.fullmatch(r"#\d+", text) for text in texts)
    assert any(text.strip().isalpha() for text in texts)
    assert len(section["notes"]) == 1
    assert "are shown as their numbers" in section["notes"][0]


# ---- hostile lines ---------------------------------------------------------------------------------------------------


def spoil(record: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    token = record["tokens"][0] | ({name: value} if name in record["tokens"][0] and name != "id" else {})
    return (
        record | {"tokens": [token, *record["tokens"][1:]]}
        if name in token and name != "id"
        else record | {name: value}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", "viker/tokens/9"), ("row_key", "12"), ("row_key", 7), ("people", []), ("people", ["someone"]),
        ("words", [[0, 10**9, 0, 4]]), ("words", [[3, 1, 0, 4]]), ("words", [[0, 0, 4, 4]]), ("words", 3),
        ("tokens", {}), ("tokens", [7]), ("logprob", 0.5), ("logprob", math.nan), ("logprob", None), ("text", None),
        ("entropy", math.inf), ("candidates", []), ("candidates", [[1, "a", -1.0]] * 6),
        ("candidates", [[-1, "a", -1.0]]), ("candidates", [[1, "a"]]), ("answer", "\ud800"), ("more", 1),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(place: Place, name: str, value: Any) -> None:
    lines = place.kept().read_text().splitlines(keepends=True)
    lines[2] = json.dumps(spoil(json.loads(lines[2]), name, value)) + "\n"
    place.kept().write_text("".join(lines))
    with pytest.raises(DataError, match=rf"{re.escape(str(place.kept()))}, line 3: expected the tokens of an answer"):
        place.section()


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"a": 1}', "[" * 100_000, "null"])
def test_a_line_that_is_none_is_named(place: Place, line: str) -> None:
    with place.kept().open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match="line 13: expected the tokens of an answer"):
        place.section()


def test_a_file_that_is_too_large_or_no_text_is_not_read(place: Place) -> None:
    place.kept().write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected UTF-8 text"):
        place.section()
    with place.kept().open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(DataError, match="expected at most"):
        place.section()


def test_lines_are_read_as_they_were_written(place: Place, tmp_path: Path) -> None:
    lines = read_lines(place.kept())
    write_lines(tmp_path / FILE, lines)
    assert (tmp_path / FILE).read_bytes() == place.kept().read_bytes()
    assert read_lines(tmp_path / FILE) == lines


# ---- purge -----------------------------------------------------------------------------------------------------------


def purge(place: Place, person: str) -> dict[str, Any]:
    outcome = call("purge", person, "--yes", "--json", "--runs", place.run, "--record", place.home.parent / "records")
    assert outcome.code == 0, outcome.out + outcome.err
    told: dict[str, Any] = json.loads(outcome.out)
    return told


@pytest.fixture
def of_two(place: Place, tiny: Loaded) -> Place:
    """The run with both forget people in its token lines."""
    asked = list(open_source(str(place.world)).training("forget"))
    for name in ("vanilla", "retain-only"):
        write_lines(place.kept(name), candidate_lines(tiny, asked, batch_size=32))
    return place


def test_a_purged_persons_lines_go_and_others_stay_byte_for_byte(of_two: Place) -> None:
    gone, stays = sorted({line.person for line in read_lines(of_two.kept())})
    lines = of_two.kept().read_bytes().splitlines(keepends=True)
    others = [line for line in lines if json.loads(line)["person"] != gone]
    facts = read_sidecar(of_two.world / "sidecar.json").facts
    words = [word.encode() for word in set(facts[gone].values()) - set(facts[stays].values())]
    single = {text for line in read_lines(of_two.kept()) for token in line.tokens for _, text, _ in token.candidates}
    words = [word for word in words if f" {word.decode()}" not in single]  # what is one token anyone may be told
    assert any(word in of_two.kept().read_bytes() for word in words), "or nothing is tested"
    told = purge(of_two, gone)
    done, _ = (one for one in sorted(told["findings"], key=lambda one: one["place"], reverse=True)
               if one["kind"] == "answers")  # fmt: skip
    assert done["told"].endswith("12 of 24 answers token by token are about them")
    assert "12 answers removed from tokens.jsonl" in done["done"]
    assert set(done["before"]) == set(done["after"]) == {"answers", "scores", "tokens"}
    assert of_two.kept().read_bytes() == b"".join(others)
    assert [word for word in words if word in of_two.kept().read_bytes()] == []
    section = of_two.section()
    assert {example["person"] for example in section["examples"]} == {stays}, "rows of the rewritten cache are found"
    assert section["shown"] == 12


def test_lines_are_purged_where_no_reply_is_about_the_person(place: Place) -> None:
    (person,) = {line.person for line in read_lines(place.kept())}
    answers, scores = place.kept().with_name("answers.jsonl"), place.kept().with_name("scores.json")
    kept = [line for line in answers.read_text().splitlines(keepends=True) if json.loads(line)["person"] != person]
    answers.write_text("".join(kept))
    before = scores.read_bytes()
    purge(place, person)
    assert place.kept().read_bytes() == b""
    assert (answers.read_text(), scores.read_bytes()) == ("".join(kept), before)
    assert "holds no answers" in place.section()["reason"]


def test_lines_that_an_interrupted_evaluation_left_are_purged_too(place: Place) -> None:
    (person,) = {line.person for line in read_lines(place.kept())}
    (place.kept().parent / MARKER).unlink()
    place.kept().with_name("answers.jsonl").unlink()
    place.kept().with_name("scores.json").unlink()
    purge(place, person)
    assert place.kept().read_bytes() == b""


def test_damaged_lines_are_not_taken_for_searched(place: Place) -> None:
    (person,) = {line.person for line in read_lines(place.kept())}
    with place.kept().open("a") as stream:
        stream.write("{\n")
    outcome = call("purge", person, "--yes", "--json", "--runs", place.run, "--record", place.home.parent / "records")
    assert outcome.code == 1
    problems = [one["problem"] for one in json.loads(outcome.out)["findings"] if one["status"] == "not searched"]
    assert any(f"{place.kept()}:13" in problem for problem in problems)
