"""Teachers in 8 and 4 bits: recorded in the fingerprint, refused with one message where they cannot be.

With bitsandbytes installed they run for real; it has kernels for CPUs too.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call
from family_work import EXAMPLES, naive, picture, shared, work_of, worst
from tiny_families import build
from viker.data.example import DataError
from viker.models.identity import teacher_identity
from viker.models.load import load, load_model, resolve
from viker.models.quantize import loading_settings, quantization_of
from viker.precompute.cache import compare, make_fingerprint
from viker.precompute.open_teacher import open_teacher

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def stored_in(directory: Path, settings: dict[str, Any]) -> Path:
    """A config.json that says how a checkpoint's weights are stored."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return directory


def fingerprint_of(tiny: Any, bits: str | None) -> dict[str, Any]:
    identity = teacher_identity(tiny.checkpoint, tiny.encoder, quantization=bits)
    return make_fingerprint(
        identity, {}, top_k=4, vocab_size=9, teacher_dtype="float32", logprob_dtype="float16", row_keys=[]
    )


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_without_bitsandbytes_few_bits_are_refused(tiny, monkeypatch, bits):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"--quantization {bits}: expected the package bitsandbytes, found none"):
        load_model(tiny.checkpoint, quantization=bits)


def test_the_command_says_so_in_one_message(tiny_model_dir, mini_world, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    outcome = call(
        "precompute", "--data", mini_world, "--model", tiny_model_dir, "--pool", "patterns", "--limit", 1,
        "--quantization", "nf4",
    )  # fmt: skip
    assert outcome.code == 1
    assert outcome.message.startswith("--quantization nf4: expected the package bitsandbytes")


def test_vllm_takes_no_few_bits(tiny):
    with pytest.raises(DataError, match="--quantization int8: expected the engine shared-prefix or naive, found vllm"):
        open_teacher({"engine": "vllm", "quantization": "int8"}, tiny.checkpoint, tiny.encoder, None, "cpu", print)


def test_a_fingerprint_names_the_bits_and_a_student_may_differ(tiny):
    whole, few = fingerprint_of(tiny, None), fingerprint_of(tiny, "nf4")
    assert (whole["quantization"], few["quantization"]) == (None, "nf4")
    comparison = compare(few, whole, ())
    assert (comparison.mismatches, comparison.reported) == ({}, {"quantization": ("nf4", None)})


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_weights_stored_in_few_bits_are_named_and_loaded_as_they_are(tmp_path, settings, name):
    directory = stored_in(tmp_path / "model", settings)
    assert quantization_of(directory, None) == quantization_of(directory, name) == name
    assert loading_settings(directory, None, dtype=torch.float32, device="cpu") == {"device_map": {"": "cpu"}}


def test_weights_stored_in_few_bits_are_not_loaded_in_others(tmp_path):
    directory = stored_in(tmp_path / "model", {"quant_method": "gptq", "bits": 4})
    with pytest.raises(DataError, match=r"expected whole weights to load in int8, found them stored in gptq"):
        quantization_of(directory, "int8")


def test_a_name_from_a_forged_fingerprint_is_refused(tiny):
    with pytest.raises(DataError, match="expected weights stored in 'gptq', found whole ones"):
        quantization_of(tiny.checkpoint.weights, "gptq")


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_teacher_in_few_bits_runs(tmp_path, bits, quiet_torch):
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    build("llava", tmp_path)
    whole = load(resolve(str(tmp_path)))
    few = load(resolve(str(tmp_path)), quantization=bits)
    work = work_of(whole, EXAMPLES, [picture(0), picture(1)])
    assert 0.01 < worst(naive(few, work), naive(whole, work)) < 0.9
    assert worst(shared(few, work), naive(few, work)) < 0.05


@needs_bitsandbytes
def test_a_cache_of_a_teacher_in_few_bits(tmp_path, mini_world, quiet_torch, monkeypatch):
    build("llava", tmp_path / "model")
    options = ("--data", mini_world, "--model", tmp_path / "model", "--pool", "patterns", "--limit", 2, "--top-k", 8)
    keys = {}
    for bits in ("int8", "nf4", None):
        monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / str(bits)))  # else one cache would serve the next
        chosen = () if bits is None else ("--quantization", bits)
        outcome = call("precompute", *options, *chosen, "--json")
        assert outcome.code == 0, outcome.err
        summary = json.loads(outcome.out)
        fingerprint = json.loads((Path(summary["path"]) / "fingerprint.json").read_text())
        assert fingerprint["quantization"] == bits
        assert summary["engine"] == "shared-prefix"
        keys[bits] = summary["key"]
    assert len(set(keys.values())) == 3
