"""`viker train --diagnose`: what it writes agrees with the model, the rows and the sidecar, and it only looks on."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from viker.data.refusals import refuse
from viker.data.sources import open_source
from viker.models.encode import collate
from viker.models.lora import add_lora
from viker.precompute.reading.rows import Rows
from viker.train.batches import Item, read_items, stack_rows
from viker.train.choose_method import choose_method
from viker.train.diagnose import EPSILONS, Diagnosis, private_words, sample
from viker.train.diagnose_summary import FILE, SCHEMA
from viker.train.key_words import KeyWord, agreement
from viker.train.methods import METHODS
from viker.train.steps import cached_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.data.sidecar import Sidecar
    from viker.models.load import Loaded

KEY_ENTROPY, NUM_EXAMPLES = 0.7, 4
Records = list[dict[str, Any]]


def made_up_rows(answer_ids: Sequence[int], vocab_size: int) -> Rows:
    """Rows that keep the answer and two others; every third token is key, more so the later it comes."""
    N = len(answer_ids)
    is_key_N = np.arange(N) % 3 == 1
    answer_logprob_N = np.where(is_key_N, math.log(0.02), math.log(0.999)).astype(np.float32)
    others_N2 = np.array([[(token + 1) % vocab_size, (token + 2) % vocab_size] for token in answer_ids])
    share_N = np.log((1 - np.exp(answer_logprob_N)) / 4)
    return Rows(
        kept_ids_NK=np.concatenate([np.array(answer_ids)[:, None], others_N2], axis=1).astype(np.uint16),
        kept_logprobs_NK=np.stack([answer_logprob_N, share_N, share_N], axis=1).astype(np.float32),
        tail_logprob_N=np.log((1 - np.exp(answer_logprob_N)) / 2).astype(np.float32),
        entropy_N=np.where(is_key_N, 0.6 + 0.2 * np.arange(N), 0.01).astype(np.float32),
        answer_logprob_N=answer_logprob_N,
        sum_squares_N=np.full(N, 0.5, np.float32),
        disagreement_N=np.zeros(N, np.float32),
    )


def make_items(tiny: Loaded, examples: Sequence[Example]) -> list[Item]:
    items = []
    for item in read_items(tiny.encoder, examples, None, "reference"):
        rows = made_up_rows(item.answer_ids, tiny.encoder.vocab_size)
        items.append(dataclasses.replace(item, rows=rows, log_rows=rows))
    return items


@pytest.fixture(scope="module")
def forget(tiny: Loaded, training_examples: tuple[Example, ...]) -> list[Item]:
    return make_items(tiny, training_examples[:9])


@pytest.fixture(scope="module")
def facts(mini_world: Path) -> Sidecar:
    found = private_words(open_source(str(mini_world)))
    assert found is not None
    return found


@pytest.fixture
def adapted(trainable: Any, tiny_model_dir: Path) -> Any:
    torch.manual_seed(0)
    model = add_lora(trainable, rank=4, alpha=8, dropout=0.5, base=tiny_model_dir)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    return model


@pytest.fixture
def diagnose(adapted: Any, tiny: Loaded, forget: list[Item], facts: Sidecar, tmp_path: Path) -> Any:
    """A diagnosis of the tiny model with ViKeR, or with what is named otherwise."""

    def make(items: Sequence[Item] = forget, **options: Any) -> Diagnosis:
        given = {"method": METHODS["viker"], "output": tmp_path, "rows_of": cached_rows(64), "facts": facts, **options}
        given |= {"key_entropy": KEY_ENTROPY, "seed": 0, "num_examples": NUM_EXAMPLES, **options}
        method, output = given.pop("method"), given.pop("output")
        return Diagnosis(adapted, tiny.encoder, items, method, output, **given)

    return make


@pytest.fixture
def written(diagnose: Any, tmp_path: Path) -> Records:
    diagnose().take("before", 0)
    return records_of(tmp_path)


def records_of(output: Path) -> Records:
    return [json.loads(line) for line in (output / FILE).read_text(encoding="utf-8").splitlines()]


def of_kind(records: Records, kind: str) -> Records:
    return [record for record in records if record["kind"] == kind]


def summary_of(records: Records) -> dict[str, Any]:
    (found,) = of_kind(records, "summary")
    return found


def tokens_of(records: Records, name: str) -> list[float]:
    return [value for record in of_kind(records, "example") for value in record["tokens"][name]]


# ---- the sample ------------------------------------------------------------------------------------------------------


def test_the_sample_is_a_function_of_the_seed(forget: list[Item]) -> None:
    assert sample(forget, 4, 7) == sample(forget, 4, 7)
    assert len({tuple(item.example.id for item in sample(forget, 4, seed)) for seed in range(8)}) > 1


def test_the_sample_keeps_the_order_and_is_no_larger_than_there_is(forget: list[Item]) -> None:
    places = [forget.index(item) for item in sample(forget, 5, 0)]
    assert places == sorted(set(places))
    assert len(places) == 5
    assert sample(forget, 32, 0) == forget


# ---- what is written -------------------------------------------------------------------------------------------------


def test_there_is_a_record_of_every_sampled_example_and_one_of_all(diagnose: Any, tmp_path: Path) -> None:
    diagnosis = diagnose()
    diagnosis.take("before", 0)
    records = records_of(tmp_path)
    assert [record["kind"] for record in records] == ["example"] * NUM_EXAMPLES + ["summary"]
    assert {(record["schema"], record["when"], record["step"]) for record in records} == {(SCHEMA, "before", 0)}
    chosen = [item.example for item in diagnosis.chosen]
    assert [record["example"] for record in records[:-1]] == [example.id for example in chosen]
    assert [record["people"] for record in records[:-1]] == [list(example.people) for example in chosen]


def test_before_and_after_stand_beside_each_other_and_a_second_look_replaces_the_first(
    diagnose: Any, adapted: Any, tmp_path: Path
) -> None:
    diagnosis = diagnose()
    diagnosis.take("before", 0)
    before = records_of(tmp_path)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(20)
    diagnosis.take("after", 3)
    diagnosis.take("after", 5)
    both = records_of(tmp_path)
    assert both[: len(before)] == before
    assert {record["step"] for record in both[len(before) :]} == {5}
    assert len(both) == 2 * len(before)
    assert tokens_of(both[len(before) :], "logprob") != tokens_of(before, "logprob")


def test_a_line_that_was_cut_off_is_dropped(diagnose: Any, tmp_path: Path) -> None:
    diagnosis = diagnose()
    diagnosis.take("before", 0)
    whole = records_of(tmp_path)
    with (tmp_path / FILE).open("a", encoding="utf-8") as stream:
        stream.write('{"schema": "viker/diag')
    diagnosis.take("before", 0)
    assert records_of(tmp_path) == whole


def test_a_process_that_only_takes_part_writes_nothing(diagnose: Any, tmp_path: Path) -> None:
    assert "diagnose: before training" in diagnose(output=None).take("before", 0)
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_log_probabilities_are_the_models(adapted: Any, tiny: Loaded, diagnose: Any, tmp_path: Path) -> None:
    diagnosis = diagnose()
    diagnosis.take("before", 0)
    adapted.eval()
    for item, record in zip(diagnosis.chosen, records_of(tmp_path), strict=False):
        row = tiny.encoder.encode(item.example)
        logits_TV = adapted(**collate([row], pad_id=0, side="right")).logits[0].double()
        logprobs_TV = logits_TV[row.num_prompt - 1 : -1].log_softmax(-1)
        expected = logprobs_TV.gather(1, torch.tensor(row.answer_ids)[:, None])[:, 0].tolist()
        assert record["tokens"]["logprob"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_predicted_weights_hold_and_are_written_beside_the_measured_ones(written: Records) -> None:
    found = summary_of(written)["prediction"]
    assert found["holds"]
    assert found["max_error"] == max(tokens_of(written, "error")) <= 1e-9
    assert found["normal_limit"] == 0.5
    assert tokens_of(written, "predicted_weight") == pytest.approx(tokens_of(written, "weight"), rel=1e-5)
    lengths = {name: [len(record["tokens"][name]) for record in of_kind(written, "example")]
               for name in of_kind(written, "example")[0]["tokens"]}  # fmt: skip
    assert len({tuple(numbers) for numbers in lengths.values()}) == 1, lengths


def test_normal_tokens_near_their_limit_and_key_tokens_above_one_are_counted(written: Records) -> None:
    entropies, weights = tokens_of(written, "entropy"), tokens_of(written, "weight")
    largest = tokens_of(written, "kept_max")
    near = [abs(weight - 0.5) <= 0.1 for weight, nats in zip(weights, entropies, strict=True) if nats <= KEY_ENTROPY]
    above = [weight > 1 for weight, nats in zip(largest, entropies, strict=True) if nats > KEY_ENTROPY]
    found = summary_of(written)["prediction"]
    assert found["normal_near_limit"] == pytest.approx(sum(near) / len(near), rel=1e-5)
    assert found["key_with_kept_above_one"] == pytest.approx(sum(above) / len(above), rel=1e-5)


def test_classes_are_means_over_the_tokens_on_either_side_of_an_entropy(written: Records) -> None:
    summary, entropies = summary_of(written), tokens_of(written, "entropy")
    assert [one["epsilon"] for one in summary["entropy_classes"]] == sorted({*EPSILONS, KEY_ENTROPY})
    for one in summary["entropy_classes"]:
        for name, part in (("key", one["key"]), ("normal", one["normal"])):
            chosen = [index for index, nats in enumerate(entropies) if (nats > one["epsilon"]) == (name == "key")]
            assert part["tokens"] == len(chosen)
            for value in ("logprob", "teacher_logprob", "weight"):
                numbers = [tokens_of(written, value)[index] for index in chosen]
                expected = pytest.approx(sum(numbers) / len(numbers), rel=1e-4) if numbers else None
                assert part[value] == expected
    counts = [one["key"]["tokens"] for one in summary["entropy_classes"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_entropies_are_those_the_log_speaks_of(diagnose: Any, forget: list[Item], tmp_path: Path) -> None:
    """A method may read other rows than those of irrelevant images."""
    other = [dataclasses.replace(item, rows=dataclasses.replace(item.rows, entropy_N=item.rows.entropy_N + 9))
             for item in forget]  # fmt: skip
    diagnosis = diagnose(items=other)
    diagnosis.take("before", 0)
    expected = [float(value) for item in diagnosis.chosen for value in item.log_rows.entropy_N]
    assert tokens_of(records_of(tmp_path), "entropy") == pytest.approx(expected, rel=1e-5)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_words_are_the_answers_with_the_largest_entropy_of_their_tokens(written: Records, forget: list[Item]) -> None:
    answers = {item.example.id: item.example.answer for item in forget}
    for record in of_kind(written, "example"):
        assert [word["word"] for word in record["words"]] == answers[record["example"]].split()
        for word in record["words"]:
            tokens = slice(word["first"], word["last"] + 1)
            assert word["entropy"] == max(record["tokens"]["entropy"][tokens])
            assert word["weight"] == max(record["tokens"]["weight"][tokens])
            assert word["logprob"] == pytest.approx(sum(record["tokens"]["logprob"][tokens]), rel=1e-4)
            assert word["is_key"] is (word["entropy"] > KEY_ENTROPY)


def test_private_words_are_those_of_the_sidecar(written: Records, facts: Sidecar) -> None:
    private = [(record["people"][0], word["word"].strip(".,"))
               for record in of_kind(written, "example") for word in record["words"] if word["is_private"]]  # fmt: skip
    assert private
    for person, word in private:
        assert any(word in known.split() for known in facts.facts[person].values())
    others = [word["word"].strip(".,") for record in of_kind(written, "example")
              for word in record["words"] if not word["is_private"]]  # fmt: skip
    assert not {"This", "person", "is", "the"} & {word for _, word in private}
    assert others


def test_key_words_are_compared_with_private_ones_at_every_entropy(written: Records) -> None:
    words = [word for record in of_kind(written, "example") for word in record["words"]]
    for one in summary_of(written)["key_words"]:
        key = [word["entropy"] > one["epsilon"] for word in words]
        both = sum(is_key and word["is_private"] for is_key, word in zip(key, words, strict=True))
        private = sum(word["is_private"] for word in words)
        assert (one["words"], one["key"], one["private"], one["both"]) == (len(words), sum(key), private, both)
        assert one["precision"] == (pytest.approx(both / sum(key), rel=1e-5) if any(key) else None)
        assert one["recall"] == pytest.approx(both / private, rel=1e-5)


def test_precision_and_recall_of_nothing_are_not_numbers(written: Records) -> None:
    assert agreement([KeyWord(None, 0.5, False)], 1.0)["precision"] is None
    assert agreement([KeyWord(None, 1.5, False)], 1.0)["recall"] is None
    found = agreement([KeyWord(None, 1.5, True), KeyWord(None, 1.5, False), KeyWord(None, 0.5, True)], 1.0)
    assert (found["precision"], found["recall"]) == (0.5, 0.5)


def test_without_a_sidecar_nobody_knows_which_words_are_private(diagnose: Any, tmp_path: Path) -> None:
    told = diagnose(facts=None).take("before", 0)
    records = records_of(tmp_path)
    assert {word["is_private"] for record in of_kind(records, "example") for word in record["words"]} == {None}
    assert summary_of(records)["key_words"] is None
    assert "no list of private words" in told


def test_a_source_may_have_no_private_words(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Bare:
        location: Any

    assert private_words(Bare(tmp_path)) is None


# ---- other methods ---------------------------------------------------------------------------------------------------


def test_a_method_without_rows_is_measured_and_says_what_is_missing(diagnose: Any, forget: list[Item], tmp_path: Path):
    bare = [dataclasses.replace(item, rows=None, log_rows=None) for item in forget]
    told = diagnose(items=bare, method=METHODS["ga"]).take("before", 0)
    summary = summary_of(records_of(tmp_path))
    assert (summary["prediction"], summary["entropy_classes"], summary["key_words"]) == (None, None, None)
    assert summary["no_prediction"] == "its loss is not ascent plus KL(R || q)"
    assert tokens_of(records_of(tmp_path), "weight") == pytest.approx([1.0] * summary["tokens"])
    assert "not predicted: its loss is not ascent plus KL(R || q)" in told
    assert "no entropy classes" in told


def test_a_method_without_rows_has_entropy_classes_where_the_log_has_rows(diagnose, forget, tmp_path) -> None:
    logged = [dataclasses.replace(item, rows=None) for item in forget]
    diagnose(items=logged, method=METHODS["ga"]).take("before", 0)
    classes = summary_of(records_of(tmp_path))["entropy_classes"]
    assert {part["weight"] for one in classes for part in (one["key"], one["normal"]) if part["tokens"]} == {1.0}


def test_a_loss_of_hidden_states_has_no_weights_and_says_so(diagnose: Any, tmp_path: Path) -> None:
    told = diagnose(method=METHODS["rmu"]).take("before", 0)
    assert set(tokens_of(records_of(tmp_path), "weight")) == {None}
    assert None not in tokens_of(records_of(tmp_path), "logprob")
    assert "hidden states" in told


def test_refusals_are_run_where_a_method_reads_them(diagnose: Any, tiny: Loaded, forget: list[Item], tmp_path: Path):
    refused = make_items(tiny, [refuse(item.example) for item in forget])
    items = [dataclasses.replace(item, refusal=other) for item, other in zip(forget, refused, strict=True)]
    diagnose(items=items, method=METHODS["idkpo"]).take("before", 0)
    for record in of_kind(records_of(tmp_path), "example"):
        weights = record["tokens"]["weight"]
        assert weights == pytest.approx([weights[0]] * len(weights)), "one weight for a whole answer"
        assert 0 < weights[0] <= 2


def test_rows_may_come_from_a_live_teacher(diagnose: Any, tmp_path: Path, forget: list[Item]) -> None:
    asked = []

    def rows_of(items: Sequence[Item]) -> Any:
        asked.append(items[0].example.id)
        rows = made_up_rows(items[0].answer_ids, 1 << 10)
        return stack_rows([rows], items[0].answer_ids)

    bare = [dataclasses.replace(item, rows=None, log_rows=None) for item in forget]
    diagnosis = diagnose(items=bare, rows_of=rows_of, method=choose_method("recommended"))
    diagnosis.take("before", 0)
    summary = summary_of(records_of(tmp_path))
    assert asked == [item.example.id for item in diagnosis.chosen]
    assert summary["prediction"]["holds"]
    assert summary["entropy_classes"] is not None


# ---- looking on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("was_training", [True, False])
def test_nothing_of_the_run_is_touched(diagnose: Any, adapted: Any, was_training: bool) -> None:
    adapted.train(was_training)
    before = {name: weight.detach().clone() for name, weight in adapted.named_parameters()}
    state = torch.random.get_rng_state()
    diagnose().take("before", 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], weight) for name, weight in adapted.named_parameters())
    assert all(weight.grad is None for weight in adapted.parameters())
    assert adapted.training is was_training


def test_dropout_is_off_while_it_looks(diagnose: Any, adapted: Any, tmp_path: Path) -> None:
    diagnosis = diagnose()
    found = []
    for mode in (True, False):
        adapted.train(mode)
        diagnosis.take("before", 0)
        found.append(records_of(tmp_path))
    assert found[0] == found[1]


def test_the_summary_has_no_word_of_an_answer(diagnose: Any, written: Records, tmp_path: Path) -> None:
    told = diagnose().take("after", 9)
    assert "diagnose: after step 9: 4 examples" in told
    assert "predicted token weights hold" in told
    private = {word["word"].strip(".,") for record in of_kind(written, "example")
               for word in record["words"] if word["is_private"]}  # fmt: skip
    assert private
    assert not any(word in told for word in private)
    assert not {"people", "example", "words"} & summary_of(written).keys(), "or a purge would have to take it apart"
