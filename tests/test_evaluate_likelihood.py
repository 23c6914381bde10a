"""How likely the published answers are: the same whatever is packed, kept beside the replies, scored again from it."""

from __future__ import annotations

import dataclasses
import json
import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from family_work import EXAMPLES, asked, each, own_rows
from tiny_families import build
from viker.cli import viker
from viker.data.example import DataError, Message
from viker.data.sources import open_source
from viker.evaluate import generate
from viker.evaluate.ask import Protocol, ask_everything, collect_questions
from viker.evaluate.generate import answer_likelihoods, answer_token_scores, score_batch
from viker.models.encode import collate
from viker.models.load import load, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.encode import Encoded
    from viker.models.load import Loaded

SPOKEN = dataclasses.replace(EXAMPLES[1], id="x/spoken", images=(), messages=(Message("user", "Where was x born?"),))
QUESTIONS = (EXAMPLES[1], SPOKEN, EXAMPLES[3], EXAMPLES[2], asked(1, "Lisbon", "And where?"), EXAMPLES[5])


@pytest.fixture(scope="module")
def people(mini_world: Path) -> list[Example]:
    """Two people's image questions, one of each in turn: neighbors never share a picture."""
    shown = [e for e in open_source(str(mini_world)).read("forget") if e.task == "generation" and e.images]
    names = sorted({example.people[0] for example in shown})[:2]
    first, second = ([example for example in shown if example.people[0] == name] for name in names)
    return [example for pair in zip(first, second, strict=True) for example in pair]


def values(loaded: Loaded, examples: Sequence[Example], batch_size: int = 64) -> list[float]:
    return [total for total, _ in answer_likelihoods(loaded.model, loaded.encoder, examples, batch_size=batch_size)]


def test_a_picture_runs_once_and_a_question_too_whatever_its_answers(
    tiny: Loaded, people: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four options behind each question of two pictures: what is run is the trie of questions and options."""
    options = [
        dataclasses.replace(example, id=f"{example.id}/{letter}", answer=answer)
        for example in people
        for letter, answer in zip("ABCD", ("Oslo", "a baker", "a red door", "chess"), strict=True)
    ]
    expected = [values(tiny, [option])[0] for option in options]
    rows = [tiny.encoder.encode(option) for option in options]
    shown: list[int] = []
    read: list[int] = []
    features, forward = tiny.model.model.get_image_features, tiny.model.model.language_model.forward

    def seeing(*args: Any, **kwargs: Any) -> Any:
        shown.append(len(kwargs["pixel_values"]))
        return features(*args, **kwargs)

    def reading(*args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["inputs_embeds"].shape[:2].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny.model.model, "get_image_features", seeing)
    monkeypatch.setattr(tiny.model.model.language_model, "forward", reading)
    assert values(tiny, options) == pytest.approx(expected, abs=1e-3)
    assert sum(shown) == len({shown_by(row) for row in rows}) == 2
    beginnings = {
        (shown_by(row), row.input_ids[:end]) for row in rows for end in range(row.image_end + 1, len(row.input_ids))
    }
    assert sum(read) == 2 * rows[0].image_end + len(beginnings)
    assert sum(read) < sum(len(row.input_ids) for row in rows) / 3


def shown_by(row: Encoded) -> tuple[int, ...]:
    return tuple(map(id, row.pictures))


def test_attention_that_cannot_read_a_mask_of_pairs_gives_the_same(
    tiny: Loaded, tiny_model_dir: Path, people: list[Example]
) -> None:
    eager = load(resolve(str(tiny_model_dir)), attention="eager")
    assert values(eager, people) == pytest.approx(values(tiny, people), abs=1e-3)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Path:
    return tmp_path_factory.mktemp("families of likelihoods")


@pytest.fixture
def family(request: pytest.FixtureRequest, families: Path) -> Loaded:
    build(request.param, families / request.param)
    return load(resolve(str(families / request.param)))


@each
def test_every_family_says_what_its_own_processor_and_one_plain_pass_say(family: Loaded) -> None:
    # Mllama's tokens that see no image take the mean of all that the batch holds: one image each, or none.
    examples = [example for example in QUESTIONS if family.model_type != "mllama" or len(example.images) == 1]
    found = values(family, examples)
    for example, value in zip(examples, found, strict=True):
        if not example.images:
            assert value == pytest.approx(values(family, [example])[0], abs=1e-4)
            continue
        rows_MV = own_rows(family, example)
        ids_M = torch.tensor(family.encoder.encode(example).answer_ids)
        assert value == pytest.approx(float(rows_MV.gather(1, ids_M[:, None]).log().sum()), abs=1e-4)


def plain_scores(logits_MV: torch.Tensor, ids: Sequence[int]) -> list[tuple[float, float, float, int]]:
    """Token scores of float64 distributions, written out: what Min-K%++ standardizes, and what is likeliest."""
    scores = []
    for logits_V, token in zip(logits_MV.double(), ids, strict=True):
        logprob_V = logits_V - logits_V.logsumexp(0)
        seen_V = logprob_V[logprob_V.isfinite()]
        mean = float((seen_V.exp() * seen_V).sum())
        variance = float((seen_V.exp() * (seen_V - mean) ** 2).sum())
        scores.append((float(logprob_V[token]), mean, math.sqrt(variance), int(int(logits_V.argmax()) == token)))
    return scores


def assert_scores(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 1e-3) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[:3] == pytest.approx(other[:3], abs=tolerance)
        assert one[3] == other[3]


@each
def test_every_token_is_scored_under_the_distribution_of_one_plain_pass(family: Loaded) -> None:
    examples = [example for example in QUESTIONS if len(example.images) == 1]
    found = answer_token_scores(family.model, family.encoder, examples, batch_size=64)
    for example, tokens in zip(examples, found, strict=True):
        ids = family.encoder.encode(example).answer_ids
        assert_scores(tokens, plain_scores(own_rows(family, example).log(), ids))


def test_the_tokens_a_model_says_are_its_likeliest_and_others_are_not(tiny: Loaded, people: list[Example]) -> None:
    prompts = [tiny.encoder.encode_prompt(example) for example in people[:4]]
    with torch.no_grad():
        said = [generate._generate(tiny.model, tiny.encoder, [row], 5)[0] for row in prompts]
    answered = [
        dataclasses.replace(row, answer_ids=tuple(ids), input_ids=(*row.input_ids, *ids))
        for row, ids in zip(prompts, said, strict=True)
    ]
    names = [example.id for example in people[:4]]
    found = score_batch(tiny.model, tiny.encoder, answered, names)
    assert [[token[3] for token in tokens] for tokens in found] == [[1] * len(ids) for ids in said]
    other = dataclasses.replace(
        answered[0], answer_ids=(said[0][0], 300), input_ids=(*prompts[0].input_ids, said[0][0], 300)
    )
    [[first, second]] = score_batch(tiny.model, tiny.encoder, [other], names[:1])
    assert (first[3], second[3]) == (1, 0)


@pytest.mark.parametrize("at_once", [1, 3000, 2**25])
def test_however_few_logits_are_held_at_once_the_scores_are_the_same(
    tiny: Loaded, people: list[Example], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(generate, "LOGITS_AT_ONCE", at_once)
    held: list[int] = []
    real = generate._statistics

    def holding(logits_mV: torch.Tensor, ids_m: torch.Tensor) -> Any:
        held.append(logits_mV.numel())
        return real(logits_mV, ids_m)

    monkeypatch.setattr(generate, "_statistics", holding)
    found = answer_token_scores(tiny.model, tiny.encoder, people, batch_size=64)
    assert max(held) <= max(at_once, tiny.encoder.vocab_size)
    with torch.no_grad():
        for example, tokens in zip(people[:3], found, strict=False):
            row = tiny.encoder.encode(example)
            logits_TV = tiny.model(**collate([row], pad_id=0, side="right")).logits[0]
            assert_scores(tokens, plain_scores(logits_TV[row.num_prompt - 1 : -1], row.answer_ids), 5e-3)


def test_logits_that_are_changed_behind_the_head_are_the_models_own(
    tiny: Loaded, trainable: Any, people: list[Example]
) -> None:
    """A model that scales what its head gives is asked whole: its head alone would say something else."""
    forward = trainable.lm_head.forward
    expected = answer_token_scores(tiny.model, tiny.encoder, people[:3], batch_size=4)
    trainable.config.get_text_config().logit_scale = 0.5
    calls = []

    def counting(states: torch.Tensor) -> torch.Tensor:
        calls.append(states.dim())
        return forward(states)

    trainable.lm_head.forward = counting
    found = answer_token_scores(trainable, tiny.encoder, people[:3], batch_size=4)
    assert calls == [3], "one call, of the model itself"
    for one, other in zip(found, expected, strict=True):
        assert_scores(one, other)


def test_statistics_of_distributions_that_are_known() -> None:
    uniform_V, sure_V = torch.zeros(8), torch.tensor([0.0, *[-1e4] * 7])
    half_V = torch.tensor([0.0, 0.0, *[-math.inf] * 6])
    skewed_V = torch.tensor([0.75, 0.25, *[0.0] * 6]).log()
    logits_mV = torch.stack([uniform_V, sure_V, half_V, skewed_V])
    found = generate._statistics(logits_mV, torch.tensor([3, 0, 1, 1]))
    mean = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    spread = math.sqrt(0.75 * (math.log(0.75) - mean) ** 2 + 0.25 * (math.log(0.25) - mean) ** 2)
    expected = [
        (-math.log(8), -math.log(8), 0.0, 0), (0.0, 0.0, 0.0, 1), (-math.log(2), -math.log(2), 0.0, 0),
        (math.log(0.25), mean, spread, 0),
    ]  # fmt: skip
    assert_scores(found, expected, 1e-6)


def test_a_likelihood_is_the_sum_of_its_tokens(tiny: Loaded, people: list[Example]) -> None:
    tokens = answer_token_scores(tiny.model, tiny.encoder, people, batch_size=8)
    sums = answer_likelihoods(tiny.model, tiny.encoder, people, batch_size=8)
    assert sums == [(pytest.approx(sum(token[0] for token in one)), len(one)) for one in tokens]


def test_a_diverged_model_is_an_error_that_names_the_question(
    tiny: Loaded, trainable: Any, people: list[Example]
) -> None:
    next(trainable.lm_head.parameters()).data.fill_(math.nan)
    with pytest.raises(DataError, match=f"{people[0].id}.*expected a finite log-probability of the answer, found nan"):
        answer_likelihoods(trainable, tiny.encoder, people[:1], batch_size=4)


def test_questions_of_the_generation_task_keep_their_likelihood_behind_the_bare_question(
    tiny: Loaded, mini_world: Path
) -> None:
    questions = collect_questions(open_source(str(mini_world)), ("classification", "cloze", "generation"), limit=1)
    few = {split: asked[::3] for split, asked in questions.items()}
    protocol = Protocol(style="official", max_new_tokens=2, batch_size=8, tasks=())
    answers = ask_everything(tiny.model, tiny.encoder, few, protocol, "tiny")
    asked_too = [example for examples in few.values() for example in examples]
    assert {answer.modality for answer in answers if answer.answer_logprob} == {"image", "text"}
    for answer, example in zip(answers, asked_too, strict=True):
        assert (answer.answer_logprob is not None) == (example.task == "generation")
        if answer.answer_logprob:
            assert answer.answer_logprob[0] == pytest.approx(values(tiny, [example])[0], abs=1e-3)
            assert answer.answer_logprob[1] == len(tiny.encoder.encode(example).answer_ids)


def evaluate(output: Path, world: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(
        viker, ["evaluate", "--data", str(world), "--output", str(output), *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result


def records_of(output: Path) -> list[dict[str, Any]]:
    scores = json.loads((output / "scores.json").read_text())["scores"]
    return [score for score in scores if score["metric"] == "answer_logprob"]


def test_scores_hold_it_and_survive_being_scored_again(tiny_model_dir: Path, mini_world: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    options = ("--model", str(tiny_model_dir), "--limit", "1", "--task", "generation", "--max-new-tokens", "2")
    told = evaluate(output, mini_world, *options)
    records, lines = records_of(output), (output / "answers.jsonl").read_text().splitlines()
    assert {(record["split"], record["modality"]) for record in records} >= {
        (split, modality) for split in ("forget", "retain-heldout") for modality in ("image", "text")
    }
    for record in records:
        kept = [json.loads(line) for line in lines]
        cell = [a for a in kept if (a["split"], a["modality"]) == (record["split"], record["modality"])]
        assert record["value"] == pytest.approx(fmean(a["answer_logprob"][0] / a["answer_logprob"][1] for a in cell))
        assert record["n"] == len(cell)
    again = evaluate(output, mini_world, *options, "--rescore")
    assert records_of(output) == records
    assert "without their log-probability" not in told.output + again.output

    old = [{name: value for name, value in json.loads(line).items() if name != "answer_logprob"} for line in lines]
    (output / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in old))
    again = evaluate(output, mini_world, *options, "--rescore")
    assert records_of(output) == []
    assert f"{len(lines)} generated answers were kept without their log-probability" in again.stderr
    assert len(json.loads((output / "scores.json").read_text())["scores"]) > 4
