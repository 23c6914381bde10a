"""What the vLLM engine does around vLLM: bounds of an average, an answer's rows, parts of work, weights laid out.

vLLM itself is not needed here; `test_vllm_engine.py` runs it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import call
from safetensors.torch import load_file, save_file
from viker.data.example import DataError
from viker.models import vllm_start
from viker.models.encode import Encoded
from viker.models.load import Checkpoint, resolve
from viker.models.vllm_prompt import require_same_ids
from viker.models.vllm_start import read_options, require_vllm
from viker.models.vllm_weights import lay_out, new_names
from viker.precompute.engines.rows import Pending
from viker.precompute.engines.vllm import ALL, Kept, Pair, VllmEngine, can_score_rows, scores_request
from viker.precompute.engines.vllm_bounds import (
    ENTROPY_WITHIN,
    LOGPROB_WITHIN,
    Bounded,
    Listed,
    average_listed,
    is_certified,
)
from viker.precompute.engines.vllm_lists import read_lists, read_scores
from viker.precompute.open_vllm import SETTINGS
from viker.precompute.topk import rows_from_probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

V, M, IMAGES = 50, 4, 3


def distributions(sharpness: float, seed: int = 0, images: int = IMAGES) -> torch.Tensor:
    """k distributions [k, M, V] that resemble each other, as references' do."""
    generator = torch.Generator().manual_seed(seed)
    common_MV = torch.randn((M, V), generator=generator)
    own_kMV = torch.randn((images, M, V), generator=generator)
    return (sharpness * (common_MV + 0.3 * own_kMV)).double().log_softmax(-1)


def listed(logprobs_MV: torch.Tensor, top: int, answer_ids: Sequence[int] = (0,) * M) -> Listed:
    """The `top` likeliest and the answer, as vLLM gives them."""
    likeliest = logprobs_MV.topk(top, dim=1)
    answer_M1 = torch.tensor(answer_ids)[:, None]
    ids_ML = torch.cat([answer_M1, likeliest.indices], 1)
    ceiling_M = likeliest.values[:, -1].exp() if top < logprobs_MV.shape[1] else torch.zeros(len(logprobs_MV))
    return Listed(ids_ML, logprobs_MV.gather(1, ids_ML), ceiling_M.double())


def bounded_average(logprobs_kMV: torch.Tensor, top: int) -> Any:
    return average_listed([listed(one, top) for one in logprobs_kMV], len(logprobs_kMV), logprobs_kMV.shape[2])


def entropy(probs: torch.Tensor) -> torch.Tensor:
    return -torch.xlogy(probs, probs).sum(-1)


# ---- Bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("top", [1, 3, 10, 30, V])
@pytest.mark.parametrize("seed", range(5))
def test_the_truth_is_within_the_bounds(sharpness, top, seed):
    logprobs_kMV = distributions(sharpness, seed)
    true_MV = logprobs_kMV.exp().mean(0)
    ours = bounded_average(logprobs_kMV, top)
    assert (true_MV >= ours.known_MV - 1e-12).all()
    assert (true_MV <= ours.known_MV + ours.gap_MV + 1e-12).all()
    assert ((entropy(true_MV) - entropy(ours.mean_MV)).abs() <= ours.entropy_width_M + 1e-12).all()
    mean_entropy_M = entropy(logprobs_kMV.exp()).mean(0)
    assert ((mean_entropy_M - ours.mean_entropy_M).abs() <= ours.entropy_width_M + 1e-12).all()
    torch.testing.assert_close(ours.mean_MV.sum(1), torch.ones(M).double())


def worst_average(bounded: Any) -> torch.Tensor:
    """A distribution within the bounds that is far from ours: all that is left on as few tokens as may have it."""
    worst_MV = bounded.known_MV.clone()
    for row, gap_V in zip(worst_MV, bounded.gap_MV, strict=True):
        left = 1 - row.sum()
        for token in gap_V.argsort(descending=True).tolist():
            share = min(left, gap_V[token])
            row[token] += share
            left -= share
    return worst_MV


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("top", [3, 10, 30])
@pytest.mark.parametrize("seed", range(5))
def test_the_most_concentrated_rest_is_within_the_entropy_bound(sharpness, top, seed):
    ours = bounded_average(distributions(sharpness, seed), top)
    assert ((entropy(worst_average(ours)) - entropy(ours.mean_MV)).abs() <= ours.entropy_width_M + 1e-12).all()


def test_a_list_of_the_whole_vocabulary_is_the_average_itself():
    logprobs_kMV = distributions(2.0)
    ours = bounded_average(logprobs_kMV, V)
    torch.testing.assert_close(ours.mean_MV, logprobs_kMV.exp().mean(0))
    assert ours.gap_MV.max() == 0
    assert ours.entropy_width_M.max() == 0
    assert is_certified(ours, V, torch.float16)


def test_certified_rows_keep_what_the_whole_distributions_would():
    outcomes = []
    for sharpness in (1.0, 3.0, 6.0, 9.0):
        for seed in range(20):
            for top in (8, 16, 32):
                logprobs_kMV = distributions(sharpness, seed)
                ours = bounded_average(logprobs_kMV, top)
                certified = is_certified(ours, 4, torch.float16)
                outcomes.append(certified)
                if not certified:
                    continue
                rows = ours.rows()
                answers_M = torch.zeros(M, dtype=torch.long)
                found = rows_from_probabilities(rows.mean_MV, rows.mean_entropy_M, answers_M, 4, torch.float32)
                true_MV = logprobs_kMV.exp().mean(0)
                expected = rows_from_probabilities(
                    true_MV, entropy(logprobs_kMV.exp()).mean(0), answers_M, 4, torch.float32
                )
                assert torch.equal(found["kept_id"], expected["kept_id"])
                within = {
                    "kept_logprob": LOGPROB_WITHIN, "entropy": ENTROPY_WITHIN, "disagreement": 2 * ENTROPY_WITHIN,
                    "answer_logprob": 1e-5, "sum_squares": 1e-3,
                }  # fmt: skip
                for name, tolerance in within.items():
                    assert (found[name].float() - expected[name].float()).abs().max() <= tolerance, name
                assert (found["tail_logprob"].exp() - expected["tail_logprob"].exp()).abs().max() < 1e-4
    assert 0.1 < np.mean(outcomes) < 0.9  # both ways out were taken


def test_a_token_that_is_second_under_every_image_is_not_overlooked():
    """Each image lists its own first token; the one that all rank second is the likeliest on average."""
    probs_kMV = torch.full((IMAGES, 1, V), 0.15 / (V - 2)).double()
    for image in range(IMAGES):
        probs_kMV[image, 0, image] = 0.45
        probs_kMV[image, 0, 40] = 0.40
    probs_kMV /= probs_kMV.sum(-1, keepdim=True)
    ours = average_listed([listed(one, 1, [0]) for one in probs_kMV.log()], IMAGES, V)
    assert int(ours.mean_MV.argmax()) != 40
    assert not is_certified(ours, 1, torch.float16)


def test_certainty_of_the_kept_is_asked_of_what_is_stored():
    """Two tokens that float16 cannot tell apart are kept by their ids, so neither may rest on a bound."""
    known_MV = torch.tensor([[0.6, 0.2, 0.1999999, 0.0]]).double()
    exact = Bounded(known_MV, known_MV, torch.zeros_like(known_MV), torch.zeros(1), torch.zeros(1))
    assert is_certified(exact, 2, torch.float16)
    nearly = exact._replace(gap_MV=torch.tensor([[0.0, 0.0, 0.0, 0.21]]).double())
    assert not is_certified(nearly, 2, torch.float16)
    assert is_certified(nearly, 1, torch.float16)


def test_wide_entropies_and_wide_kept_probabilities_are_not_certified():
    ours = bounded_average(distributions(9.0), V)
    assert not is_certified(ours._replace(entropy_width_M=torch.full((M,), 2 * ENTROPY_WITHIN)), 1, torch.float16)
    wide_MV = torch.zeros_like(ours.gap_MV).scatter_(1, ours.mean_MV.argmax(1, keepdim=True), 2 * LOGPROB_WITHIN)
    assert not is_certified(ours._replace(gap_MV=wide_MV), 1, torch.float16)


# ---- Reading what vLLM returns ---------------------------------------------------------------------------------------


def flat(rows: list[list[tuple[int, float, int]] | None]) -> SimpleNamespace:
    """vLLM's flat form: parallel lists and the places where rows start and end."""
    starts, ends, entries = [], [], []
    for row in rows:
        starts.append(len(entries))
        entries.extend(row or [])
        ends.append(len(entries))
    ids, logprobs, ranks = (list(values) for values in zip(*entries, strict=True))

    class Flat(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.start_indices)

    return Flat(start_indices=starts, end_indices=ends, token_ids=ids, logprobs=logprobs, ranks=ranks)


def dicts(rows: list[list[tuple[int, float, int]] | None]) -> list[dict[int, Any] | None]:
    return [
        None if row is None else {token: SimpleNamespace(logprob=logprob, rank=rank) for token, logprob, rank in row}
        for row in rows
    ]


ROWS: list[list[tuple[int, float, int]] | None] = [
    None,
    [(3, -0.1, 1), (3, -0.1, 1), (5, -2.5, 2)],  # a token of the prompt
    [(8, -9.0, 31), (6, -0.2, 1), (5, -2.0, 2)],  # an answer token far below the list
    [(7, -1.5, 2), (6, -0.3, 1), (7, -1.5, 2)],  # an answer token that the list holds too
]


@pytest.mark.parametrize("form", [flat, dicts])
def test_rows_are_those_before_the_end_of_the_expanded_prompt(form):
    found = read_lists(form(ROWS), (8, 7), 2)
    tokens = [
        dict(zip(*row, strict=True)) for row in zip(found.ids_ML.tolist(), found.logprobs_ML.tolist(), strict=True)
    ]
    assert tokens == [{8: -9.0, 6: -0.2, 5: -2.0}, {7: -1.5, 6: -0.3}]


@pytest.mark.parametrize("form", [flat, dicts])
def test_a_token_below_the_list_bounds_nothing(form):
    found = read_lists(form(ROWS), (8, 7), 2)
    np.testing.assert_allclose(found.ceiling_M.numpy(), np.exp([-2.0, -1.5]))


def test_a_list_of_everything_leaves_nothing():
    assert read_lists(flat(ROWS), (8, 7), ALL).ceiling_M.tolist() == [0, 0]


@pytest.mark.parametrize("form", [flat, dicts])
@pytest.mark.parametrize(
    ("rows", "answer_ids", "message"),
    [
        (ROWS, (7, 8), "expected the rows of the answer's tokens"),
        (ROWS, (1, 3, 8, 7), "more than 4 prompt tokens, found 4"),
        ([*ROWS[:2], None, ROWS[3]], (8, 7), "expected a row at position 2"),
    ],
)
def test_rows_that_are_not_there_are_an_error(form, rows, answer_ids, message):
    with pytest.raises(DataError, match=message):
        read_lists(form(rows), answer_ids, 2)


def test_scores_are_whole_distributions_or_an_error():
    logprobs_MV = distributions(2.0)[0].float().numpy()
    found = read_scores(logprobs_MV, [1] * M, V)
    np.testing.assert_array_equal(found.logprobs_ML.numpy(), logprobs_MV)
    assert found.ids_ML.tolist() == [list(range(V))] * M
    for wrong, message in (
        (None, "found none"),
        (logprobs_MV[1:], r"found \[3, 50\]"),
        (logprobs_MV + 0.1, "sum to 1"),
        (np.full_like(logprobs_MV, np.nan), "sum to 1"),
    ):
        with pytest.raises(DataError, match=message):
            read_scores(wrong, [1] * M, V)


# ---- Requests --------------------------------------------------------------------------------------------------------


def pending(first: int = 0, images: int = IMAGES) -> Pending:
    """An example under k images; its prompt's first id numbers the pair, from `first`, for `FakeLlm`."""
    answer_ids = tuple(range(1, 1 + M))
    prompts = [(100 + first + image, 10, 11, 12, 13) for image in range(images)]
    shown = [Encoded(prompt_ids, answer_ids, (9, *prompt_ids, *answer_ids), ()) for prompt_ids in prompts]
    return Pending(shown, [(f"{image}",) for image in range(images)], [()] * images, "people/7")


class FakeLlm:
    """Answers requests out of known distributions, one [M, V] a pair, as vLLM's documentation says."""

    def __init__(self, logprobs_kMV: torch.Tensor, *, shift: int = 0, v2: bool = True) -> None:
        self.logprobs_kMV, self.shift, self.calls = logprobs_kMV, shift, []
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=v2))

    def generate(self, prompts: list[dict[str, Any]], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.calls.append(len(prompts))
        return [self.answer(prompt, one) for prompt, one in zip(prompts, params, strict=True)]

    def answer(self, prompt: dict[str, Any], params: Any) -> Any:
        ids = (9, *prompt["prompt_token_ids"])
        logprobs_MV = self.logprobs_kMV[ids[1] - 100]
        if (rows := getattr(params, "prompt_logprob_token_ids", None)) is not None:
            assert len(rows) == len(ids) - 1 - params.prompt_logprob_start
            scores = np.take_along_axis(logprobs_MV.float().numpy(), rows.astype(np.int64), 1)
            return SimpleNamespace(prompt_token_ids=ids, prompt_token_id_logprobs=np.roll(scores, self.shift, 0))
        top = V if params.prompt_logprobs == ALL else params.prompt_logprobs
        answer_ids = ids[len(ids) - len(logprobs_MV) :]
        one = listed(logprobs_MV, top, answer_ids)
        order = logprobs_MV.argsort(1, descending=True).argsort(1) + 1
        rows = [
            list(zip(ids_L, values_L, order_V[ids_L].tolist(), strict=True))
            for ids_L, values_L, order_V in zip(one.ids_ML.tolist(), one.logprobs_ML.tolist(), order, strict=True)
        ]
        padding = [None, *[[(0, -1.0, 1)]] * (len(ids) - len(rows) - 1)]
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=flat([*padding, *rows]))


@pytest.fixture(autouse=True)
def params_without_vllm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))


def engine(llm: FakeLlm, **options: Any) -> VllmEngine:
    kept = Kept(top_k=4, logprob_dtype=torch.float16)
    return VllmEngine(llm, **{"vocab_size": V, "num_listed": ALL, "kept": kept, "scores_rows": False, **options})


@pytest.mark.parametrize("scores_rows", [False, True])
@pytest.mark.parametrize("bytes_at_once", [1 << 20, 1 << 16])
def test_whole_vocabularies_give_the_average(scores_rows, bytes_at_once):
    logprobs_kMV = distributions(2.0, images=2 * IMAGES)
    llm = FakeLlm(logprobs_kMV)
    ours = engine(llm, scores_rows=scores_rows, bytes_at_once=bytes_at_once)
    found = list(ours.rows([pending(), pending(first=IMAGES)]))
    for item, rows in enumerate(found):
        true_kMV = logprobs_kMV[item * IMAGES : (item + 1) * IMAGES].exp()
        torch.testing.assert_close(rows.mean_MV, true_kMV.mean(0).float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(rows.mean_entropy_M, entropy(true_kMV).mean(0).float(), atol=1e-5, rtol=1e-5)
    assert sum(llm.calls) == 2 * IMAGES
    assert (len(llm.calls) == 1) == (scores_rows or bytes_at_once == 1 << 20)


def test_what_lists_do_not_certify_is_asked_for_whole():
    sharp, even = distributions(9.0, images=IMAGES), distributions(0.5, images=IMAGES)
    for logprobs_kMV, certified in ((sharp, 1), (even, 0)):
        ours = engine(FakeLlm(logprobs_kMV), num_listed=32)
        (rows,) = ours.rows([pending()])
        assert (ours.certified, ours.asked_again) == (certified, 1 - certified)
        assert ours._llm.calls == [IMAGES] * (2 - certified)
        assert (rows.mean_MV - logprobs_kMV.exp().mean(0)).abs().sum(1).max() / 2 < (1e-3 if certified else 1e-6)


def test_lists_larger_than_allowed_are_refused_before_they_are_asked_for():
    llm = FakeLlm(distributions(2.0))
    with pytest.raises(DataError, match=r"people/7: expected vLLM's lists .* shared-prefix"):
        list(engine(llm, bytes_at_once=1 << 12).rows([pending()]))
    assert llm.calls == []


def test_a_prompt_that_vllm_reads_otherwise_is_named():
    name, ours = pending().name, pending().shown[0].input_ids
    require_same_ids(name, ours, list(ours))
    twice = (9, 9, *ours[1:])
    with pytest.raises(
        DataError, match=r"people/7: expected vLLM to read the 10 ids .* found 11, differing from token 1"
    ):
        require_same_ids(name, ours, twice)


def test_scores_are_asked_for_from_the_token_that_predicts_the_answer():
    request = scores_request(Pair(pending(), 0), V)
    assert request["prompt_logprob_start"] == 5  # the last of 1 + 5 prompt tokens
    assert request["prompt_logprob_token_ids"].tolist() == [list(range(V))] * M


@pytest.mark.parametrize(
    ("llm", "can", "told"),
    [
        (lambda kMV: FakeLlm(kMV), True, []),
        (lambda kMV: FakeLlm(kMV, v2=False), False, []),
        (lambda kMV: FakeLlm(kMV, shift=1), False, ["nats off its lists"]),
        (lambda kMV: FakeLlm(kMV + 0.1), False, ["cannot score named tokens"]),
    ],
    ids=["as its lists", "an older runner", "rows one off", "no distributions"],
)
def test_scores_of_named_tokens_are_used_where_they_are_as_the_lists(llm, can, told):
    said: list[str] = []
    assert can_score_rows(llm(distributions(2.0, images=1)), pending(images=1), V, "float32", said.append) is can
    assert len(said) == len(told)
    assert all(part in line for part, line in zip(told, said, strict=True))


# ---- Starting --------------------------------------------------------------------------------------------------------


def test_options_are_read_or_refused():
    given = ["max_num_seqs=4", "enforce_eager=false", "gpu_memory_utilization=0.5"]
    assert read_options(given, {"enforce_eager": True, "max_num_batched_tokens": 4096}) == {
        "max_num_batched_tokens": 4096, "max_num_seqs": 4, "enforce_eager": False, "gpu_memory_utilization": 0.5,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"expected one of enforce_eager, .* found 'quantization'"):
        read_options(["quantization=fp8"], {})
    with pytest.raises(DataError, match="expected a number, or true or false, found 'many'"):
        read_options(["max_num_seqs=many"], {})


def test_without_vllm_the_command_says_what_to_install(monkeypatch, mini_world, tiny_model_dir):
    def absent(name: str) -> str:
        raise vllm_start.PackageNotFoundError(name)

    monkeypatch.setattr(vllm_start, "version", absent)
    with pytest.raises(DataError, match="expected vLLM, found none"):
        require_vllm()
    outcome = call(
        "precompute", "--engine", "vllm", "--model", tiny_model_dir, "--data", mini_world, "--ratio", "10",
        "--pool", min((mini_world / "pools").iterdir()), "--limit", 2,
    )  # fmt: skip
    assert outcome.code == 1
    assert "viker[vllm]" in outcome.message


def test_the_environment_of_the_user_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    given: dict[str, Any] = {}
    monkeypatch.setitem(
        __import__("sys").modules, "vllm", SimpleNamespace(LLM=lambda **options: given.update(options) or "llm")
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_STREAM", *vllm_start._ON_A_CPU):
            patch.setenv(name, "kept")  # and put back
        settings = read_options([], SETTINGS)
        assert vllm_start.start_llm(tmp_path, settings, dtype="float32", trust_remote_code=False) == "llm"
        assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
        assert os.environ["HF_HUB_OFFLINE"] == "kept"
    assert given["max_logprobs"] == -1


def started(processor: Any) -> Any:
    """A vLLM with a processor."""
    info = SimpleNamespace(get_hf_processor=lambda: processor)
    renderer = SimpleNamespace(get_mm_processor=lambda: SimpleNamespace(info=info))
    return SimpleNamespace(llm_engine=SimpleNamespace(renderer=renderer))


def test_pictures_are_prepared_by_our_image_processor(tiny):
    ours = tiny.encoder.processor
    settings = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    theirs = SimpleNamespace(**{name: getattr(ours, name) for name in settings}, image_processor="another")
    vllm_start.share_image_processor(started(theirs), tiny.encoder)
    assert theirs.image_processor is ours.image_processor


def test_a_processor_that_is_set_otherwise_or_cannot_be_is_refused(tiny):
    theirs = SimpleNamespace(patch_size=99, image_processor="another")
    with pytest.raises(DataError, match="expected pictures prepared by CLIPImageProcessorPil"):
        vllm_start.share_image_processor(started(theirs), tiny.encoder)
    with pytest.raises(DataError, match="expected a version whose image processor can be set"):
        vllm_start.share_image_processor(SimpleNamespace(llm_engine=None), tiny.encoder)


# ---- Weights ---------------------------------------------------------------------------------------------------------


def lay(checkpoint: Checkpoint, scratch: Path) -> Path:
    scratch.mkdir()
    return lay_out(checkpoint, scratch, dtype="float32", trust_remote_code=False)


def test_flat_towers_get_the_names_vllm_reads_and_no_other_value_changes(tiny_model_dir, tmp_path):
    target = lay(resolve(str(tiny_model_dir)), tmp_path / "scratch")
    ours, theirs = load_file(tiny_model_dir / "model.safetensors"), load_file(target / "model.safetensors")
    assert "vision_tower.vision_model.embeddings.class_embedding" in theirs
    assert {name.replace("vision_tower.", "vision_tower.vision_model.") for name in ours} == set(theirs)
    assert all(
        torch.equal(ours[name], theirs[name.replace("vision_tower.", "vision_tower.vision_model.")]) for name in ours
    )
    assert {path.name for path in tiny_model_dir.iterdir()} == {path.name for path in target.iterdir()}
    assert "vision_tower.embeddings.class_embedding" in load_file(tiny_model_dir / "model.safetensors")


def test_a_directory_that_vllm_reads_is_used_where_it_is(tiny_model_dir, tmp_path):
    nested = lay(resolve(str(tiny_model_dir)), tmp_path / "first")
    assert lay(Checkpoint("model", nested, nested), tmp_path / "second") == nested


def test_only_the_shards_with_other_names_are_written(tiny_model_dir, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(tiny_model_dir, sharded)
    weights = load_file(sharded / "model.safetensors")
    parts = {
        "a.safetensors": {name: tensor for name, tensor in weights.items() if name.startswith("vision_tower")},
        "b.safetensors": {name: tensor for name, tensor in weights.items() if not name.startswith("vision_tower")},
    }
    (sharded / "model.safetensors").unlink()
    for shard, tensors in parts.items():
        save_file(tensors, sharded / shard, metadata={"format": "pt"})
    places = {name: shard for shard, tensors in parts.items() for name in tensors}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    target = lay(resolve(str(sharded)), tmp_path / "scratch")
    assert (target / "b.safetensors").is_symlink()
    assert not (target / "a.safetensors").is_symlink()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    shards = [load_file(target / shard) for shard in parts]
    assert set(index["weight_map"]) == {name for tensors in shards for name in tensors}
    assert index["weight_map"]["vision_tower.vision_model.embeddings.class_embedding"] == "a.safetensors"
    assert json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"] == places


@pytest.mark.parametrize(
    ("tower", "name", "new"),
    [
        ("clip_vision_model", "vision_tower.encoder.x", "vision_tower.vision_model.encoder.x"),
        ("siglip_vision_model", "model.vision_tower.encoder.x", "model.vision_tower.vision_model.encoder.x"),
        ("clip_vision_model", "model.vision_tower.vision_model.encoder.x", None),
        ("clip_vision_model", "language_model.vision_tower.x", None),
        ("internvl_vision", "vision_tower.encoder.x", None),
    ],
)
def test_names_change_only_where_vllm_nests_the_tower(tmp_path, tower, name, new):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"model_type": tower}}))
    assert new_names(tmp_path, [name]) == ({} if new is None else {name: new})


def test_a_processor_from_elsewhere_comes_with_the_weights(tiny_model_dir, tmp_path):
    elsewhere = tmp_path / "processor"
    elsewhere.mkdir()
    for path in tiny_model_dir.iterdir():
        if "token" in path.name or "processor" in path.name:
            shutil.copy(path, elsewhere)
    (elsewhere / "processor_config.json").write_text("{}")
    checkpoint = dataclasses.replace(resolve(str(tiny_model_dir)), processor=elsewhere)
    target = lay(checkpoint, tmp_path / "scratch")
    assert (target / "processor_config.json").read_text() == "{}"
    assert (target / "config.json").read_text() == (tiny_model_dir / "config.json").read_text()


def test_an_adapter_is_merged_into_the_weights(tiny, tiny_model_dir, tmp_path):
    import copy

    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapter = tmp_path / "adapter"
    get_peft_model(copy.deepcopy(tiny.model), settings).save_pretrained(adapter)
    changed = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**changed, "base_model_name_or_path": str(tiny_model_dir)})
    )
    target = lay(resolve(str(adapter)), tmp_path / "scratch")
    base, merged = load_file(tiny_model_dir / "model.safetensors"), load_file(target / "model.safetensors")
    names = [name for name in merged if name.endswith("q_proj.weight") and "vision_tower" in name]
    assert names
    assert all(not torch.equal(merged[name], base[name.replace("vision_model.", "")]) for name in names)
    assert (target / "tokenizer.json").is_file()

    tiny.encoder.processor.save_pretrained(adapter)
    checkpoint = resolve(str(adapter))
    assert checkpoint.processor == adapter
    beside = lay(dataclasses.replace(checkpoint, adapter=None), tmp_path / "beside")
    assert not (beside / "adapter_config.json").exists(), "what is laid out is the base, or has the adapter in it"
    assert set(load_file(beside / "model.safetensors")) == set(merged)
