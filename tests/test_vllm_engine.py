"""vLLM itself, on this machine's CPU or GPU: its rows are the oracle's, and a cache it makes is the oracle's cache.

Needs the environment of `.ci/install-vllm`. vLLM starts once in this process, and once in a command's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import succeed
from viker.data.example import DataError, EncodedImage, Message
from viker.data.portraits import encode_png
from viker.data.references import make_pool, read_pool
from viker.models.interventions import Intervention, teacher_prompt
from viker.models.vllm_start import read_options, share_image_processor, start_llm
from viker.models.vllm_weights import lay_out
from viker.precompute import run
from viker.precompute.cache import TeacherCache
from viker.precompute.engines.naive import naive_rows
from viker.precompute.engines.vllm import ALL, Kept, Pair, VllmEngine, generate, lists_request, scores_request
from viker.precompute.engines.vllm_lists import read_lists
from viker.precompute.open_vllm import SETTINGS
from viker.precompute.topk import rows_from_probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded
    from viker.precompute.engines.rows import Pending, Probabilities

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # vLLM's own imports warn

VARIATION = 1e-4
NUM_REFERENCES = 4
TOP_K = 16


@pytest.fixture(scope="module")
def llm(tiny: Loaded, tmp_path_factory) -> Any:
    """vLLM over the tiny model, in this process, in the environment the engine gives it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("VLLM_")]:
            patch.delenv(name)
        scratch = tmp_path_factory.mktemp("vllm")
        directory = lay_out(tiny.checkpoint, scratch, dtype="float32", trust_remote_code=False)
        # Prompts are cut into chunks.
        options = read_options(["max_num_seqs=8", "max_num_batched_tokens=256"], SETTINGS)
        started = start_llm(directory, options, dtype="float32", trust_remote_code=False)
        share_image_processor(started, tiny.encoder)
        return started


def engine(llm: Any, tiny: Loaded, num_listed: int = ALL, **options: Any) -> VllmEngine:
    kept = Kept(top_k=TOP_K, logprob_dtype=torch.float16)
    return VllmEngine(
        llm, vocab_size=tiny.encoder.vocab_size, num_listed=num_listed, kept=kept, scores_rows=False, **options
    )


def resized(image: EncodedImage, width: int, height: int) -> EncodedImage:
    """The picture at another size, so that the image processor has to resize it, as it does real ones."""
    from viker.models.pictures import decode

    return EncodedImage(encode_png(decode(image).resize((width, height))), f"resized {image.origin}")


@pytest.fixture(scope="module")
def references(mini_world) -> Intervention:
    """Four of six references an example, of sizes the processor has to change."""
    pool = read_pool(min((mini_world / "pools").iterdir()))
    images = [resized(image, 70 + 9 * index, 91 - 5 * index) for index, image in enumerate(pool.images[:6])]
    return Intervention(kind="reference", pool=make_pool("six", images), num_references=NUM_REFERENCES, seed=0)


def pending_of(tiny: Loaded, examples: Sequence[Example], intervention: Intervention) -> list[Pending]:
    work = []
    for index, example in enumerate(examples):
        ids = tiny.encoder.ids(example)
        shown_ids = teacher_prompt(intervention, tiny.encoder, example, *ids)
        work.append(run.pending_of(run.Work(example, *ids, bytes([index]) * 16, shown_ids), intervention, tiny.encoder))
    return work


def oracle(tiny: Loaded, work: Sequence[Pending]) -> list[Probabilities]:
    return list(naive_rows(tiny.model, work, tiny.encoder.pad_id))


def largest_variation(ours: Sequence[Probabilities], theirs: Sequence[Probabilities]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((one.mean_MV - other.mean_MV).abs().sum(1).max()) / 2 for one, other in pairs)


def cut(rows: Probabilities, item: Pending) -> dict[str, torch.Tensor]:
    answers_M = torch.tensor(item.answer_ids)
    return rows_from_probabilities(rows.mean_MV, rows.mean_entropy_M, answers_M, TOP_K, torch.float32)


def assert_same_scalars(ours: Probabilities, theirs: Probabilities, item: Pending, within: float) -> None:
    found, expected = cut(ours, item), cut(theirs, item)
    for name in ("tail_logprob", "entropy", "answer_logprob", "sum_squares"):
        assert (found[name] - expected[name]).abs().max() < within, name
    assert (found["disagreement"].float() - expected["disagreement"].float()).abs().max() < 2 * within


def test_rows_under_references_are_the_oracles(llm, tiny, training_examples, references):
    work = pending_of(tiny, training_examples[:6], references)
    ours, theirs = list(engine(llm, tiny).rows(work)), oracle(tiny, work)
    assert largest_variation(ours, theirs) < VARIATION
    for one, other, item in zip(ours, theirs, work, strict=True):
        assert_same_scalars(one, other, item, 1e-3)
        kept, expected = cut(one, item), cut(other, item)
        torch.testing.assert_close(kept["kept_logprob"], expected["kept_logprob"], atol=1e-3, rtol=0)
    assert largest_variation(theirs[:1], [dataclasses.replace(theirs[0], mean_MV=theirs[0].mean_MV.roll(1, 0))]) > 0.1


def test_lists_in_small_parts_are_the_same_rows(llm, tiny, training_examples, references):
    work = pending_of(tiny, training_examples[:3], references)
    one_pair = max(len(shown.input_ids) for item in work for shown in item.shown) * (tiny.encoder.vocab_size + 1) * 110
    parts = list(engine(llm, tiny, bytes_at_once=one_pair).rows(work))
    assert largest_variation(parts, list(engine(llm, tiny).rows(work))) < VARIATION


@pytest.mark.parametrize(
    "intervention",
    [Intervention(kind="self"), Intervention(kind="prompt", instruction="Say nothing."), Intervention(kind="text")],
    ids=lambda intervention: intervention.kind,
)
def test_rows_of_other_kinds_are_the_oracles(llm, tiny, training_examples, intervention):
    work = pending_of(tiny, training_examples[:4], intervention)
    assert largest_variation(list(engine(llm, tiny).rows(work)), oracle(tiny, work)) < VARIATION


def test_rows_without_an_image_and_with_two_are_the_oracles(llm, tiny, training_examples):
    first, other = training_examples[0], training_examples[-1]
    without = dataclasses.replace(first, images=(), messages=(Message("user", first.question),))
    two = dataclasses.replace(
        first, images=(*first.images, *other.images),
        messages=(Message("user", f"<image> and <image>\n{first.question}"),),
    )  # fmt: skip
    work = pending_of(tiny, [without, two, first], Intervention(kind="self"))
    assert [len(item.shown[0].pictures) for item in work] == [0, 2, 1]
    assert largest_variation(list(engine(llm, tiny).rows(work)), oracle(tiny, work)) < VARIATION


@pytest.mark.parametrize("num_listed", [TOP_K, 200, 600])
def test_certified_or_asked_again_rows_are_the_oracles(llm, tiny, training_examples, references, num_listed):
    work = pending_of(tiny, training_examples[:6], references)
    listing = engine(llm, tiny, num_listed)
    ours, theirs = list(listing.rows(work)), oracle(tiny, work)
    assert listing.certified + listing.asked_again == len(work)
    for one, other, item in zip(ours, theirs, work, strict=True):
        found, expected = cut(one, item), cut(other, item)
        assert (found["kept_logprob"] - expected["kept_logprob"]).abs().max() < 2e-3
        kept_MV = torch.zeros_like(one.mean_MV).scatter_(1, found["kept_id"], 1).bool()
        assert float((one.mean_MV - other.mean_MV).abs().where(kept_MV, 0).sum(1).max()) / 2 < VARIATION
        assert_same_scalars(one, other, item, 0.02)
    assert (listing.asked_again == len(work)) if num_listed == TOP_K else True
    assert (listing.certified > 0) if num_listed == 600 else True


def test_expanded_ids_are_ours_and_others_are_refused(llm, tiny, training_examples):
    (item,) = pending_of(tiny, training_examples[:1], Intervention(kind="self"))
    pair = Pair(item, 0)
    assert tuple(generate(llm, [pair], [lists_request(1)])[0].prompt_token_ids) == pair.shown.input_ids
    expanded = dataclasses.replace(pair.shown, prompt_ids=pair.shown.input_ids[: pair.shown.num_prompt])
    with pytest.raises(DataError, match=rf"{item.name}: expected vLLM to read the {len(pair.shown.input_ids)} ids"):
        list(engine(llm, tiny).rows([dataclasses.replace(item, shown=[expanded])]))


def test_vllms_own_scorer_reads_our_request_as_we_mean_it(llm, tiny, training_examples):
    """The part of its newer runner (which needs a GPU) that turns a request into rows, with logits we know."""
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

    (item,) = pending_of(tiny, training_examples[:1], Intervention(kind="self"))
    pair, vocab_size = Pair(item, 0), tiny.encoder.vocab_size
    length = len(pair.shown.input_ids)
    scorer = PromptLogprobsWorker(1, torch.device("cpu"), logprobs_mode="raw_logits")
    scorer.add_request("one", 0, SamplingParams(max_tokens=1, **scores_request(pair, vocab_size)))
    logits_TV = torch.randn((length, vocab_size), generator=torch.Generator().manual_seed(0))
    found = {}
    for start, stop in ((0, length // 2), (length // 2, length)):  # a prompt is read in chunks
        batch = SimpleNamespace(
            req_ids=["one"], idx_mapping_np=np.array([0]), num_computed_prefill_tokens_np=np.array([start]),
            num_scheduled_tokens=np.array([stop - start]), prefill_len_np=np.array([length]),
            query_start_loc_np=np.array([0, stop - start]),
        )  # fmt: skip
        chunk_TV = logits_TV[start:stop]
        found |= scorer.compute_prompt_token_id_logprobs(lambda rows: rows, chunk_TV, batch, np.array([length]))
    first = pair.shown.num_prompt - 1  # the row for answer token i is predicted one position before it
    torch.testing.assert_close(found["one"], logits_TV[first : first + item.num_rows], atol=0, rtol=0)


def test_flat_lists_and_dicts_say_the_same(llm, tiny, training_examples):
    (item,) = pending_of(tiny, training_examples[:1], Intervention(kind="self"))
    pair = Pair(item, 0)
    requests = [{"prompt_logprobs": 5, "flat_logprobs": flat} for flat in (True, False)]
    flat, dicts = (
        read_lists(generate(llm, [pair], [request])[0].prompt_logprobs, item.answer_ids, 5) for request in requests
    )
    for one, other in zip(flat.ids_ML.tolist(), dicts.ids_ML.tolist(), strict=True):
        assert set(one) == set(other)
    torch.testing.assert_close(flat.ceiling_M, dicts.ceiling_M)


def test_a_picture_prepared_by_another_backend_has_other_rows(llm, tiny, training_examples, references):
    """vLLM's own choice passes every check of ids; the rows above are the oracle's because it is not used."""
    from transformers import AutoImageProcessor

    info = llm.llm_engine.renderer.get_mm_processor().info
    other = AutoImageProcessor.from_pretrained(tiny.checkpoint.processor, backend="torchvision")
    work = pending_of(tiny, training_examples[:1], references)
    fresh = [[dataclasses.replace(image, data=image.data + b" ") for image in images] for images in work[0].images]
    digests = [tuple(image.sha256 for image in images) for images in fresh]  # vLLM keeps what it made of the others
    info.get_hf_processor().image_processor = other
    try:
        ours = list(engine(llm, tiny).rows([dataclasses.replace(work[0], images=fresh, image_digests=digests)]))
        assert largest_variation(ours, oracle(tiny, work)) > 2 * VARIATION
    finally:
        share_image_processor(llm, tiny.encoder)


def precompute(engine_name: str, model: Path, world: Path, *more: object) -> list[object]:
    return [
        "precompute", "--engine", engine_name, "--model", model, "--data", world, "--ratio", "10",
        "--pool", min((world / "pools").iterdir()), "--num-references", NUM_REFERENCES, "--top-k", TOP_K,
        "--limit", 6, "--device", "cpu", "--json", *more,
    ]  # fmt: skip


def test_the_command_makes_the_oracles_cache(tiny_model_dir, mini_world, tmp_path, monkeypatch):
    caches = {}
    for name in ("naive", "vllm"):
        monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / name))
        arguments = precompute(name, tiny_model_dir, mini_world)
        if name == "naive":
            told = succeed(*arguments).out
        else:
            done = subprocess.run(
                [sys.executable, "-m", "viker", *map(str, arguments)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            told = done.stdout
        caches[name] = TeacherCache.open(tmp_path / name / json.loads(told)["key"][:16])
    ours, theirs = caches["vllm"], caches["naive"]
    assert ours.key == theirs.key
    assert ours.build["engine"].startswith("vllm 0.")
    assert ours.build["engine"].endswith("whole vocabulary")
    rows, expected = ours.load(), theirs.load()
    np.testing.assert_allclose(rows.entropy_N, expected.entropy_N, atol=1e-3)
    np.testing.assert_allclose(rows.answer_logprob_N, expected.answer_logprob_N, atol=1e-3)
    # float16 moves by half a step where a value lies between two: 2 ** -9 at -4
    np.testing.assert_allclose(rows.kept_logprobs_NK, expected.kept_logprobs_NK, atol=0.01)
    assert (rows.kept_ids_NK == expected.kept_ids_NK).mean() > 0.95
