"""A cache is named before any weight is loaded, made block by block, and resumed to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cache_samples import tree_bytes
from viker.data.example import DataError, EncodedImage, Message
from viker.data.references import make_pool, read_pool
from viker.models.encode import Encoder
from viker.models.identity import teacher_identity, weights_digest
from viker.models.interventions import Intervention
from viker.models.load import load_encoder, load_model, resolve
from viker.models.lora import add_lora
from viker.precompute.cache import TeacherCache, person_digest
from viker.precompute.engines.naive import naive_rows
from viker.precompute.reading.summary import summarize
from viker.precompute.reading.verify import verify
from viker.precompute.run import (
    Request,
    block_arrays,
    compute_blocks,
    make_request,
    samples_of_block,
    start_builder,
)
from viker.precompute.sharing.lookup import look_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded
    from viker.precompute.engines.rows import Pending, Probabilities


@pytest.fixture(scope="module")
def pool(mini_world):
    images = read_pool(min((mini_world / "pools").iterdir())).images
    return make_pool("small", images[:5])


@pytest.fixture(scope="module")
def reference(pool):
    return Intervention(kind="reference", pool=pool, num_references=2, seed=0)


@pytest.fixture(scope="module")
def examples(training_examples):
    return training_examples[:24]


@pytest.fixture(scope="module")
def identity(tiny):
    return teacher_identity(tiny.checkpoint, tiny.encoder)


@pytest.fixture
def ask(tiny, identity, reference):
    """Make a request with this test's defaults."""

    def make(examples: Sequence[Example], intervention: Intervention = reference, **changes: Any) -> Request:
        options = {"top_k": 8, "teacher_dtype": "float32", "logprob_dtype": "float16", **changes}
        return make_request(tiny.encoder, examples, intervention, identity, **options)

    return make


class CountedRows:
    """The oracle engine, counting what it runs; stops with an error after `fail_after` examples."""

    def __init__(self, tiny: Loaded, fail_after: int | None = None) -> None:
        self._tiny, self._fail_after = tiny, fail_after
        self.blocks = self.examples = 0

    def __call__(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        self.blocks += 1
        for rows in naive_rows(self._tiny.model, pending, self._tiny.encoder.pad_id):
            if self.examples == self._fail_after:
                raise KeyboardInterrupt
            self.examples += 1
            yield rows


def run(home: Path, request: Request, intervention: Intervention, tiny: Loaded, rows_of: CountedRows) -> TeacherCache:
    builder = start_builder(home, request, intervention, {"source": "tests"})
    compute_blocks(builder, request, intervention, tiny.encoder, rows_of, "cpu")
    return TeacherCache.open(builder.assemble())


def find_existing(home: Path, request: Request, named: frozenset[str]) -> TeacherCache | None:
    found = look_up(home, None, request.key, request.fingerprint, named, request.by_row_key.keys(), print)
    return None if found is None else found.cache


def moved(example: Example) -> Example:
    """The same content under another id and path."""
    images = tuple(EncodedImage(image.data, f"/elsewhere/{image.sha256[:4]}") for image in example.images)
    return dataclasses.replace(example, id=f"other/{example.id}", images=images)


def key_of_checkpoint(spec: str, examples: Sequence[Example], intervention: Intervention) -> str:
    checkpoint = resolve(spec)
    encoder = load_encoder(checkpoint)
    identity = teacher_identity(checkpoint, encoder)
    options = {"top_k": 8, "teacher_dtype": "float32", "logprob_dtype": "float16"}
    return make_request(encoder, examples, intervention, identity, **options).key


def test_the_key_is_known_without_loading_weights(tiny_model_dir, ask, examples, reference, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("viker.models.load.AutoModelForImageTextToText.from_pretrained", refuse)
    with pytest.raises(AssertionError, match="weights were loaded"):
        load_model(resolve(str(tiny_model_dir)))
    assert key_of_checkpoint(str(tiny_model_dir), examples, reference) == ask(examples).key


def test_the_key_does_not_depend_on_order_ids_or_paths(ask, examples):
    assert ask(examples[::-1]).key == ask(examples).key
    assert ask([moved(example) for example in examples]).key == ask(examples).key


def test_the_key_does_not_depend_on_the_name_of_the_pool(ask, examples, reference, pool):
    renamed = make_pool("another name", pool.images[::-1])
    assert ask(examples, dataclasses.replace(reference, pool=renamed)).key == ask(examples).key


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"num_references": 3}, {"shared": True}, {"pool": "other"}, {"kind": "self", "pool": None}],
    ids=str,
)
def test_the_key_depends_on_what_the_teacher_is_shown(ask, examples, reference, pool, change):
    if change.get("pool") == "other":
        change = {"pool": make_pool("other", pool.images[:4])}
    assert ask(examples, dataclasses.replace(reference, **change)).key != ask(examples).key


@pytest.mark.parametrize("change", [{"top_k": 9}, {"teacher_dtype": "bfloat16"}, {"logprob_dtype": "float32"}], ids=str)
def test_the_key_depends_on_what_is_stored(ask, examples, change):
    assert ask(examples, **change).key != ask(examples).key


def test_the_key_depends_on_every_answer_and_question(ask, examples):
    first, *others = examples
    answered = dataclasses.replace(first, answer="Nobody knows.")
    asked = dataclasses.replace(first, messages=(Message("user", "<image>\nWho is it?"),))
    keys = {ask([one, *others]).key for one in (first, answered, asked)} | {ask(others).key}
    assert len(keys) == 4


def test_the_image_is_part_of_the_key_only_where_it_is_shown(ask, examples):
    swapped = [dataclasses.replace(examples[0], images=examples[-1].images)]
    own = Intervention(kind="self")
    assert examples[0].images[0].sha256 != examples[-1].images[0].sha256
    assert ask(swapped).key == ask(examples[:1]).key
    assert ask(swapped, own).key != ask(examples[:1], own).key


def test_a_copy_of_a_model_shares_its_key(tiny_model_dir, ask, examples, reference, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "copy")
    assert key_of_checkpoint(str(tmp_path / "copy"), examples, reference) == ask(examples).key


def test_a_hub_id_and_its_local_copy_share_a_key(tiny_model_dir, ask, examples, reference, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "0123abcd"
    shutil.copytree(tiny_model_dir, snapshot)
    monkeypatch.setattr("viker.models.load.snapshot_download", lambda spec, **_: str(snapshot))
    assert resolve("org/tiny").commit == "0123abcd"
    assert key_of_checkpoint("org/tiny", examples, reference) == ask(examples).key


def test_other_weights_have_another_key(tiny_model_dir, ask, examples, reference, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, copy)
    weights = load_file(copy / "model.safetensors")
    first = min(weights)
    weights[first] = weights[first] + 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert key_of_checkpoint(str(copy), examples, reference) != ask(examples).key


def test_shards_and_file_names_play_no_part_in_the_digest_of_weights(tiny_model_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = sorted(load_file(tiny_model_dir / "model.safetensors").items())
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    save_file(dict(weights[::2]), tmp_path / "part-b.safetensors")
    save_file(dict(weights[1::2]), tmp_path / "part-a.safetensors")
    assert weights_digest(resolve(str(tmp_path))) == weights_digest(resolve(str(tiny_model_dir)))


def test_an_adapter_and_its_scale_are_part_of_the_weights(tiny, tiny_model_dir, trainable, tmp_path):
    adapted = add_lora(trainable, rank=2, alpha=4, dropout=0.0, base=tiny_model_dir)
    adapted.save_pretrained(tmp_path)
    digests = {weights_digest(tiny.checkpoint), weights_digest(resolve(str(tmp_path)))}
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 8}))
    assert len(digests | {weights_digest(resolve(str(tmp_path)))}) == 3


def test_digests_are_remembered_and_a_place_that_cannot_remember_is_no_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("viker.models.identity.SETTLED_S", 0)
    digest = weights_digest(tiny.checkpoint)
    monkeypatch.setattr("viker.models.identity._digest_tensors", lambda files: "computed again")
    assert weights_digest(tiny.checkpoint) == digest
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "file" / "caches"))
    assert weights_digest(tiny.checkpoint) == "computed again"


def test_equal_row_keys_run_once_and_are_found_under_every_person(ask, examples, reference, tiny, tmp_path):
    twins = [dataclasses.replace(examples[0], id=f"twin/{person}", people=(person,)) for person in ("a", "b", "c")]
    rows_of = CountedRows(tiny)
    cache = run(tmp_path, ask([*twins, examples[1]]), reference, tiny, rows_of)
    assert rows_of.examples == 2
    key = ask(twins).works[0].row_key
    found = [cache.rows_of(cache.find_sample(key, person_digest(cache.lineage, person))) for person in ("a", "b", "c")]
    assert all(np.array_equal(found[0].kept_logprobs_NK, rows.kept_logprobs_NK) for rows in found)
    assert cache.num_samples == 4


def test_rows_are_the_teachers_averaged_distributions(ask, examples, reference, tiny, tmp_path):
    request = ask(examples[:3])
    cache = run(tmp_path, request, reference, tiny, CountedRows(tiny))
    for work in request.works:
        rows = cache.rows_of(cache.find_row(work.row_key))
        views = reference.views(work.example, work.row_key)
        shown = [tiny.encoder.encode(work.example, view.images) for view in views]
        means = []
        for encoded in shown:
            with torch.inference_mode():
                inputs = {"input_ids": torch.tensor([encoded.input_ids]), **encoded.pictures[0].tensors}
                logits_TV = tiny.model(**inputs).logits[0]
            means.append(logits_TV[encoded.num_prompt - 1 : -1].double().softmax(-1))
        mean_MV = sum(means) / len(means)
        answers_M1 = torch.tensor(work.answer_ids)[:, None]
        np.testing.assert_allclose(rows.answer_logprob_N, mean_MV.gather(1, answers_M1)[:, 0].log(), atol=1e-4)
        np.testing.assert_allclose(rows.entropy_N, -torch.xlogy(mean_MV, mean_MV).sum(-1), atol=1e-4)
        np.testing.assert_allclose(rows.kept_logprobs_NK, mean_MV.topk(8).values.log(), atol=4e-3)


@pytest.mark.parametrize("fail_after", [0, 7, 23])
def test_a_killed_run_resumes_to_the_same_bytes(ask, examples, reference, tiny, tmp_path, fail_after):
    request = ask(examples)
    whole = CountedRows(tiny)
    expected = run(tmp_path / "whole", request, reference, tiny, whole)
    assert whole.blocks >= 20

    killed, resumed = CountedRows(tiny, fail_after), CountedRows(tiny)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", request, reference, tiny, killed)
    assert find_existing(tmp_path / "killed", request, frozenset()) is None
    cache = run(tmp_path / "killed", request, reference, tiny, resumed)

    assert killed.blocks + resumed.blocks <= whole.blocks + 1
    assert tree_bytes(cache.root) == tree_bytes(expected.root)
    assert verify(cache.root, "full") == []


def test_a_complete_cache_is_found_and_costs_no_forward(ask, examples, reference, tiny, tmp_path):
    request = ask(examples[:4])
    assert find_existing(tmp_path, request, frozenset()) is None
    cache = run(tmp_path, request, reference, tiny, CountedRows(tiny))
    found = find_existing(tmp_path, request, frozenset())
    assert found is not None
    assert found.key == cache.key == request.key
    nothing = CountedRows(tiny)
    run(tmp_path, request, reference, tiny, nothing)
    assert nothing.blocks == 0


def test_a_cache_that_covers_serves_a_smaller_request(ask, examples, reference, tiny, tmp_path):
    cache = run(tmp_path, ask(examples[:4]), reference, tiny, CountedRows(tiny))
    smaller = ask(examples[1:3], top_k=4)
    found = find_existing(tmp_path, smaller, frozenset())
    assert found is not None
    assert found.key == cache.key != smaller.key
    assert find_existing(tmp_path, ask(examples[2:6]), frozenset()) is None
    assert find_existing(tmp_path, ask(examples[:2], top_k=16), frozenset()) is None


def test_another_draw_serves_unless_it_was_named(ask, examples, reference, tiny, tmp_path):
    run(tmp_path, ask(examples[:2]), reference, tiny, CountedRows(tiny))
    other = ask(examples[:2], dataclasses.replace(reference, seed=5))
    assert find_existing(tmp_path, other, frozenset()) is not None
    assert find_existing(tmp_path, other, frozenset({"draw.seed"})) is None


def test_draws_depend_on_seed_row_key_and_pool_alone(ask, examples, reference):
    request, alone = ask(examples), ask(examples[5:6])
    draws = {work.row_key: reference.draw(work.row_key) for work in request.works}
    assert reference.draw(alone.works[0].row_key) == draws[alone.works[0].row_key]
    assert len(set(draws.values())) > 1
    assert all(len(set(draw)) == 2 for draw in draws.values())
    assert {dataclasses.replace(reference, seed=1).draw(key) for key in draws} != set(draws.values())
    shared = dataclasses.replace(reference, shared=True)
    assert len({shared.draw(key) for key in draws}) == 1


def test_a_pool_smaller_than_k_is_refused(ask, examples, reference, pool, tmp_path):
    greedy = dataclasses.replace(reference, num_references=6)
    with pytest.raises(DataError, match=r"pool small: expected at least 6 images .* found 5"):
        start_builder(tmp_path, ask(examples, greedy), greedy, {})


def test_examples_without_image_are_refused_with_the_list(ask, examples):
    texts = [
        dataclasses.replace(example, images=(), messages=(Message("user", "Who?"),), answer=f"{index}")
        for index, example in enumerate(examples[:3])
    ]
    with pytest.raises(DataError, match="found 3 without") as error:
        ask([*examples[3:6], *texts])
    assert all(example.id in str(error.value) for example in texts)
    assert "--skip-text" in str(error.value)
    assert len(ask(texts, Intervention(kind="self")).works) == 3


def test_no_examples_are_refused(ask):
    with pytest.raises(DataError, match="expected examples to compute rows for, found none"):
        ask([])


def test_an_example_about_nobody_is_refused_not_dropped(ask, examples):
    with pytest.raises(DataError, match="about at least one person"):
        ask([*examples[:2], dataclasses.replace(examples[2], people=())])


def test_a_summary_says_what_was_made(ask, examples, reference, tiny, tmp_path):
    request = ask(examples[:4])
    cache = run(tmp_path, request, reference, tiny, CountedRows(tiny))
    summary = summarize(cache, key_entropy=0.0)
    assert summary["samples"] == 4
    assert summary["rows"] == sum(len(work.answer_ids) for work in request.works)
    assert summary["key_tokens"] == summary["rows"]
    assert summary["answer_probability_at_normal_tokens"] is None


def test_overlapped_or_block_by_block_a_cache_has_the_same_bytes(ask, examples, reference, tiny, tmp_path):
    request = ask(examples)
    overlapped = run(tmp_path / "overlapped", request, reference, tiny, CountedRows(tiny))
    builder = start_builder(tmp_path / "in-turns", request, reference, {"source": "tests"})
    for block in range(len(builder.blocks)):
        arrays = block_arrays(
            samples_of_block(builder, block), request.by_row_key, reference, tiny.encoder, CountedRows(tiny),
            request.fingerprint,
        )  # fmt: skip
        builder.write_block(block, arrays, "cpu")
    assert tree_bytes(builder.assemble()) == tree_bytes(overlapped.root)


def test_an_image_that_cannot_be_decoded_is_named_and_what_came_before_it_is_staged(
    ask, examples, reference, tiny, tmp_path
):
    """The error of the thread that reads ahead is the one that reading in turns would raise."""
    request = ask(examples, Intervention(kind="self"))
    builder = start_builder(tmp_path, request, Intervention(kind="self"), {})
    broken_block = 7
    key = samples_of_block(builder, broken_block)[0].row_key
    unreadable = (EncodedImage(b"no picture", "x.png"),)
    broken = dataclasses.replace(
        request,
        works=tuple(
            dataclasses.replace(work, example=dataclasses.replace(work.example, images=unreadable))
            if work.row_key == key
            else work
            for work in request.works
        ),
    )
    with pytest.raises(DataError, match=r"x\.png: expected a picture that Pillow can read"):
        compute_blocks(builder, broken, Intervention(kind="self"), tiny.encoder, CountedRows(tiny), "cpu")
    assert start_builder(tmp_path, request, Intervention(kind="self"), {}).complete_blocks() == list(
        range(broken_block)
    )
    assert not list(builder.staging.glob("*.claim"))


def test_the_encoder_is_used_by_one_thread_at_a_time(ask, examples, reference, tiny, tmp_path, monkeypatch):
    """Tokenizers and their memos are not made for two; while blocks are computed it belongs to the reader."""
    names = set()
    real = Encoder.assemble

    def assemble(self: Encoder, *arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return real(self, *arguments)

    monkeypatch.setattr(Encoder, "assemble", assemble)
    run(tmp_path, ask(examples), reference, tiny, CountedRows(tiny))
    assert len(names) == 1
    assert names.pop().startswith("precompute-reader")


def test_how_long_the_engine_computed_and_waited_is_returned(ask, examples, reference, tiny, tmp_path):
    request = ask(examples[:8])
    builder = start_builder(tmp_path, request, reference, {})
    made = compute_blocks(builder, request, reference, tiny.encoder, CountedRows(tiny), "cpu")
    waited = made.spent.waiting_for_input + made.spent.waiting_for_writer
    assert 0 < made.spent.computing < made.spent.total
    assert made.spent.computing + waited <= made.spent.total
    nothing = compute_blocks(builder, request, reference, tiny.encoder, CountedRows(tiny), "cpu")
    assert (nothing.num_pairs, nothing.spent.computing) == (0, 0.0)
