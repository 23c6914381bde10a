"""Replies through vLLM: those of transformers, with and without LoRA; what it would leave out is refused.

What is marked needs the environment of `.ci/install-vllm`; the rest holds its place around vLLM without it.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from evaluation_jobs import jobs_about, loading_of
from safetensors.torch import load_file, save_file
from viker.data.example import DataError
from viker.evaluate import vllm_replies
from viker.evaluate.vllm_replies import VllmReplies, plan_for_vllm, run_jobs_with_vllm
from viker.evaluate.work import Job, run_jobs_here
from viker.models import vllm_start
from viker.models.load import load, resolve
from viker.models.lora import language_linears
from viker.models.vllm_lora import lora_settings, require_language_only

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.models.load import Loaded

OPTIONS = ("max_num_seqs=16", "max_num_batched_tokens=256")


@pytest.fixture(scope="module")
def replies(mini_world: Path) -> list[Job]:
    return [job for job in jobs_about(mini_world) if job.kind == "reply"]


def adapter_of(tiny: Loaded, targets: Sequence[str], directory: Path, **settings: Any) -> Path:
    """An adapter on the tiny model whose weights change what it says."""
    from peft import LoraConfig, get_peft_model

    base = str(tiny.checkpoint.weights)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights=False, **settings)
    model = get_peft_model(copy.deepcopy(tiny.model), config)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def spoken(tiny: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the language model, with a processor beside it, as `viker train` leaves one."""
    adapter = adapter_of(tiny, language_linears(tiny.model), tmp_path_factory.mktemp("adapter") / "spoken")
    tiny.encoder.processor.save_pretrained(adapter)
    return adapter


def seeing(tiny: Loaded) -> list[str]:
    return [name for name, _ in tiny.model.named_modules() if "vision_tower" in name and name.endswith("q_proj")]


# ---- With vLLM -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests in this process set for vLLM is not for its children."""
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        monkeypatch.delenv(name)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("own_environment")
def test_replies_are_those_of_transformers(tiny, tiny_model_dir, replies, tmp_path, monkeypatch):
    expected = run_jobs_here(replies, tiny.model, tiny.encoder, batch_size=8, desc="ask")
    asked = {"options": OPTIONS, "folder": tmp_path, "desc": "ask"}
    found = run_jobs_with_vllm(replies, loading_of(tiny_model_dir), **asked)
    assert found == expected
    assert len(set(found)) > 10
    assert any(job.example.images for job in replies)
    assert any(not job.example.images for job in replies)
    monkeypatch.setattr("viker.evaluate.processes._Child", None)  # nothing is left for one
    assert run_jobs_with_vllm(replies, loading_of(tiny_model_dir), **asked) == expected


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("own_environment")
def test_replies_of_a_language_adapter_beside_its_base_are_those_of_transformers(tiny, replies, spoken, tmp_path):
    loaded = load(resolve(str(spoken)))
    expected = run_jobs_here(replies, loaded.model, loaded.encoder, batch_size=8, desc="ask")
    assert expected != run_jobs_here(replies, tiny.model, tiny.encoder, batch_size=8, desc="ask")
    found = run_jobs_with_vllm(replies, loading_of(spoken), options=OPTIONS, folder=tmp_path, desc="ask")
    assert found == expected


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("own_environment")
def test_a_reply_that_finds_no_more_room_is_an_error(tiny, tiny_model_dir, replies, tmp_path):
    longest = max(len(tiny.encoder.encode_prompt(job.example).input_ids) for job in replies)
    options = (*OPTIONS, f"max_model_len={longest + 1}")
    with pytest.raises(DataError, match=r"expected room for a reply of \d+ tokens, found room for \d+. Allow more"):
        run_jobs_with_vllm(replies, loading_of(tiny_model_dir), options=options, folder=tmp_path, desc="ask")


# ---- What is refused -------------------------------------------------------------------------------------------------


def refused(adapter: Path, **changes: Any) -> str:
    checkpoint = dataclasses.replace(resolve(str(adapter)), **changes)
    with pytest.raises(DataError) as error:
        require_language_only(checkpoint, trust_remote_code=False)
    return str(error.value)


def test_an_adapter_on_the_language_model_may_go_along(spoken):
    require_language_only(resolve(str(spoken)), trust_remote_code=False)


def test_an_adapter_that_touches_vision_or_projector_has_to_be_merged_first(tiny, tmp_path):
    projector = [name for name, _ in tiny.model.named_modules() if "projector.linear" in name]
    for part in (seeing(tiny), projector):
        targets = [*language_linears(tiny.model), *part]
        adapter = adapter_of(tiny, targets, tmp_path / part[0])
        message = refused(adapter)
        assert f"found {2 * len(part)} others (base_model.model.{part[0]}.lora_A.weight" in message
        assert f"viker adapter export --merge {adapter}" in message
        assert "--engine transformers" in message


def test_dora_has_to_be_merged_first(tiny, tmp_path):
    adapter = adapter_of(tiny, language_linears(tiny.model), tmp_path / "dora", use_dora=True)
    assert "lora_magnitude_vector" in refused(adapter)


def test_what_is_no_lora_matrix_has_to_be_merged_first(spoken, tmp_path):
    adapter = tmp_path / "more"
    shutil.copytree(spoken, adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    save_file(
        {**weights, "base_model.model.lm_head.weight": weights[name].clone()}, adapter / "adapter_model.safetensors"
    )
    assert "found 1 others (base_model.model.lm_head.weight)" in refused(adapter)


def test_room_is_made_for_the_rank_of_an_adapter(tmp_path):
    def settings(**content: Any) -> dict[str, Any]:
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        return lora_settings(tmp_path)

    assert settings(r=4)["max_lora_rank"] == 8
    assert settings(r=16, rank_pattern={"q_proj": 100})["max_lora_rank"] == 128
    assert settings(r=16, rank_pattern=None)["enable_lora"]
    with pytest.raises(DataError, match=r"expected LoRA of rank 512 or less, found 1024.*Merge it first"):
        settings(r=1024)


@pytest.mark.parametrize(
    ("settings", "penalty", "named"),
    [
        ({}, 1.0, ""),
        ({"temperature": 0.1, "do_sample": True, "top_p": 0.5, "eos_token_id": [1, 2]}, 1.0, ""),
        ({"repetition_penalty": 1.05}, 1.05, ""),
        ({"no_repeat_ngram_size": 3, "repetition_penalty": 1.05}, 0.0, "no_repeat_ngram_size 3"),
        ({"suppress_tokens": [4]}, 0.0, "suppress_tokens"),
    ],
)
def test_how_a_model_is_decoded_by_default_is_followed_or_refused(tmp_path, settings, penalty, named):
    assert vllm_replies._repetition_penalty(tmp_path) == 1.0
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    if not named:
        assert vllm_replies._repetition_penalty(tmp_path) == penalty
        return
    with pytest.raises(DataError, match=rf"found others \({named}.*--engine transformers"):
        vllm_replies._repetition_penalty(tmp_path)


# ---- Around vLLM -----------------------------------------------------------------------------------------------------


class FakeLlm:
    """Puts a picture's tokens into prompts, as vLLM would, and says the same of everything."""

    def __init__(self, loaded: Loaded, tokens: Sequence[int], *, finish: str = "stop", twice: bool = False) -> None:
        self.encoder, self.tokens, self.finish, self.twice = loaded.encoder, tokens, finish, twice
        self.asked: list[tuple[dict[str, Any], Any, Any]] = []

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
        self.asked += [(prompt, param, lora_request) for prompt, param in zip(prompts, params, strict=True)]
        reply = SimpleNamespace(token_ids=self.tokens, finish_reason=self.finish)
        return [SimpleNamespace(prompt_token_ids=self._read(prompt), outputs=[reply]) for prompt in prompts]

    def _read(self, prompt: dict[str, Any]) -> list[int]:
        read = self.encoder._pictures._read
        remaining = iter(prompt.get("multi_modal_uuids", {}).get("image", ()))
        ids: list[int] = []
        for token in prompt["prompt_token_ids"]:
            if token == self.encoder.image_id:
                ids += read[next(remaining)].ids * (1 + self.twice)
            else:
                ids.append(token)
        return ids


@pytest.fixture
def llm_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """So much of vLLM as takes a request."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))


@pytest.mark.usefixtures("llm_is_here")
def test_requests_are_greedy_with_our_ids_and_our_stop_tokens(tiny, replies):
    examples = [job.example for job in replies[:6]]
    word, stop = tiny.encoder.tokenizer(" a", add_special_tokens=False)["input_ids"], min(tiny.encoder.stop_ids)
    llm = FakeLlm(tiny, [*word, stop])
    said = VllmReplies(llm, tiny.encoder, lora="adapter", repetition_penalty=1.1).reply(examples, [3, 9, 4, 4, 4, 4])
    assert said == ["a"] * 6
    assert [param.max_tokens for _, param, _ in llm.asked] == [3, 9, 4, 4, 4, 4]
    for example, (prompt, param, lora) in zip(examples, llm.asked, strict=True):
        assert tuple(prompt["prompt_token_ids"]) == tiny.encoder.encode_prompt(example).prompt_ids
        assert len(prompt.get("multi_modal_data", {}).get("image", ())) == len(example.images)
        assert (param.temperature, param.repetition_penalty, lora) == (0.0, 1.1, "adapter")
        assert param.ignore_eos, "vLLM's own idea of an end is not ours"
        assert set(param.stop_token_ids) == tiny.encoder.stop_ids


@pytest.mark.usefixtures("llm_is_here")
def test_other_ids_a_full_context_and_what_vllm_refuses_are_errors(tiny, replies):
    example = next(job.example for job in replies if job.example.images)

    def ask(llm: Any) -> list[str]:
        return VllmReplies(llm, tiny.encoder).reply([example], [8])

    with pytest.raises(DataError, match=rf"{example.id}: expected vLLM to read the \d+ ids of this prompt"):
        ask(FakeLlm(tiny, [5], twice=True))
    with pytest.raises(DataError, match=rf"{example.id}: expected room for a reply of 8 tokens, found room for 2"):
        ask(FakeLlm(tiny, [5, 5], finish="length"))
    assert len(ask(FakeLlm(tiny, [5] * 8, finish="length"))) == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("LoRA rank 9 is greater than max_lora_rank.")

    with pytest.raises(DataError, match=r"--engine vllm: LoRA rank 9 .* Use --engine transformers"):
        ask(SimpleNamespace(generate=refuse))


def test_without_vllm_it_is_said_before_anything_is_loaded(tiny_model_dir, replies, tmp_path, monkeypatch):
    def absent(name: str) -> str:
        raise vllm_start.PackageNotFoundError(name)

    monkeypatch.setattr(vllm_start, "version", absent)
    with pytest.raises(DataError, match="--engine vllm: expected vLLM, found none"):
        run_jobs_with_vllm(replies, loading_of(tiny_model_dir), options=(), folder=tmp_path, desc="ask")


def test_an_adapter_that_has_to_be_merged_is_refused_before_vllm_starts(tiny, replies, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_start, "version", lambda _: "0.0")
    adapter = adapter_of(tiny, seeing(tiny), tmp_path / "seeing")
    with pytest.raises(DataError, match="Merge it first"):
        run_jobs_with_vllm(replies, loading_of(adapter), options=(), folder=tmp_path / "kept", desc="ask")


def test_questions_about_one_picture_are_handed_over_side_by_side(replies, monkeypatch):
    monkeypatch.setattr(vllm_replies, "BATCH_SIZE", 10)
    batches = plan_for_vllm(replies)
    order = [index for batch in batches for index in batch.jobs]
    assert sorted(order) == list(range(len(replies)))
    assert max(len(batch.jobs) for batch in batches) == 10
    shown = [tuple(image.sha256 for image in replies[index].example.images) for index in order]
    changes = sum(one != other for one, other in itertools.pairwise(shown))
    assert changes == len(set(shown)) - 1
