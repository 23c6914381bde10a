"""The small commands: ask, adapter, cache, doctor, and what importing them costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from viker.cli import viker
from viker.data.artefact import begin, finish, read_json

if TYPE_CHECKING:
    from click.testing import Result

GOLDEN = Path(__file__).parent / "golden" / "cache"
QUESTION = "Where does this person live?"


def invoke(*arguments: Any, ok: bool = True) -> Result:
    result = CliRunner().invoke(viker, [str(argument) for argument in arguments], catch_exceptions=not ok)
    assert (result.exit_code == 0) is ok, result.output
    return result


def json_of(*arguments: Any) -> Any:
    return json.loads(invoke(*arguments, "--json").stdout)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory, mini_world: Path) -> Path:
    folder = next((mini_world / "pools").iterdir())
    return min(folder.glob("*.png"))


@pytest.fixture(scope="session")
def run_with_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run with one finished adapter whose weights are not zero, its evaluation, and one that was interrupted."""
    import torch
    from viker.models.load import load, resolve
    from viker.models.lora import add_lora
    from viker.models.render import write_rendering

    run = tmp_path_factory.mktemp("run")
    adapter = run / "adapters" / "viker-0123abcd"
    options = {"method": "viker", "lambda": 0.5, "retain": 0.0, "dtype": "float32", "bf16": False}
    begin(adapter, {"schema": "viker/adapter/1", "options": options, "inputs": {str(tiny_model_dir): "given"}})
    loaded = load(resolve(str(tiny_model_dir)))
    torch.manual_seed(0)
    model = add_lora(loaded.model, rank=2, alpha=4, dropout=0.0, base=tiny_model_dir.resolve())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.5)
    model.save_pretrained(adapter)
    loaded.encoder.processor.save_pretrained(adapter)
    write_rendering(adapter, loaded.rendering)
    caches = {"forget": {"key": "ab" * 32, "root": "cd" * 32}}
    finish(adapter, {"steps": 7, "stopped": True, "caches": caches}, started=0)
    evaluation = run / "evaluations" / adapter.name
    begin(evaluation, {"schema": "viker/evaluation/1"})
    cell = {
        "model": adapter.name,
        "split": "forget",
        "task": "generation",
        "modality": "image",
        "metric": "fact_recall",
    }
    (evaluation / "scores.json").write_text(
        json.dumps({"schema": "viker/scores/1", "scores": [{**cell, "value": 0.25}]})
    )
    finish(evaluation, {}, started=0)
    begin(run / "adapters" / "ga-broken00", {"schema": "viker/adapter/1"})
    return run


@pytest.fixture
def adapter(run_with_adapter: Path) -> Path:
    return run_with_adapter / "adapters" / "viker-0123abcd"


def test_ask_replies_with_and_without_a_picture(tiny_model_dir: Path, picture: Path) -> None:
    shown = json_of("ask", "--model", tiny_model_dir, "--image", picture, "--max-new-tokens", 6, QUESTION)
    assert shown["schema"] == "viker/reply/1"
    assert len(shown["images"]) == 1
    spoken = invoke("ask", "--model", tiny_model_dir, "--image", picture, "--max-new-tokens", 6, QUESTION).stdout
    assert spoken.rstrip("\n") == shown["reply"]
    blind = json_of("ask", "--model", tiny_model_dir, "--max-new-tokens", 6, QUESTION)
    assert blind["images"] == []


def test_ask_an_adapter_on_its_own_base_or_on_one_named(adapter: Path, tiny_model_dir: Path, picture: Path) -> None:
    asked = ("--image", picture, "--max-new-tokens", 6, QUESTION)
    own = json_of("ask", "--adapter", adapter, *asked)
    named = json_of("ask", "--adapter", adapter, "--model", tiny_model_dir, *asked)
    assert own == named
    assert own["adapter"] == str(adapter)


def test_ask_says_what_is_missing(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert invoke("ask", QUESTION, ok=False).exit_code == 2
    missing = invoke("ask", "--model", tiny_model_dir, "--image", tmp_path / "none.png", QUESTION, ok=False)
    assert "expected a picture, found none" in str(missing.exception)
    (tmp_path / "torn.png").write_bytes(b"not a picture")
    torn = invoke("ask", "--model", tiny_model_dir, "--image", tmp_path / "torn.png", QUESTION, ok=False)
    assert "expected a picture that Pillow can read" in str(torn.exception)
    empty = invoke("ask", "--model", tiny_model_dir, " ", ok=False)
    assert "expected a question" in str(empty.exception)
    bare = invoke("ask", "--model", tiny_model_dir, "--adapter", tmp_path, QUESTION, ok=False)
    assert "expected a PEFT directory" in str(bare.exception)


def test_adapters_are_listed_with_what_they_recall(run_with_adapter: Path, tmp_path: Path) -> None:
    broken, whole = json_of("adapter", "list", "--run", run_with_adapter)["adapters"]
    assert broken == {"name": "ga-broken00", "complete": False}
    assert (whole["method"], whole["lambda"], whole["steps"], whole["stopped"]) == ("viker", 0.5, 7, True)
    assert whole["forget_recall"] == 0.25
    text = invoke("adapter", "list", "--run", run_with_adapter).stdout
    assert "forget recall 25.0%" in text
    assert "unfinished" in text
    assert "none in" in invoke("adapter", "list", "--run", tmp_path).stdout


def test_an_adapter_is_inspected_and_called_reversible(adapter: Path, tmp_path: Path) -> None:
    told = json_of("adapter", "inspect", adapter)
    assert told["kind"] == "reversible: the base still knows"
    assert told["caches"] == {"forget": {"key": "ab" * 32, "root": "cd" * 32}}
    text = invoke("adapter", "inspect", adapter).stdout
    assert f"cache forget: key {'ab' * 32} root {'cd' * 32}" in text
    refused = invoke("adapter", "inspect", tmp_path, ok=False)
    assert "expected a finished adapter" in str(refused.exception)


def test_a_merged_export_answers_like_the_adapter(adapter: Path, tmp_path: Path, picture: Path) -> None:
    output = tmp_path / "merged"
    told = invoke("adapter", "export", adapter, "--merge", "--output", output).stdout
    assert "merged: the adapter cannot be taken off; an evaluation of the adapter is recorded" in told
    assert not (output / "adapter_config.json").exists()
    assert (output / "viker_rendering.json").is_file()
    provenance = read_json(output / "provenance.json")
    from viker.models.identity import weights_digest
    from viker.models.load import resolve

    assert provenance["weights"] == weights_digest(resolve(str(output)))
    assert provenance["evaluation"]["forget_recall"] == 0.25
    assert provenance["caches"]["forget"]["key"] == "ab" * 32
    asked = ("--image", picture, "--max-new-tokens", 6, QUESTION)
    assert json_of("ask", "--model", output, *asked)["reply"] == json_of("ask", "--adapter", adapter, *asked)["reply"]
    assert "complete, skipped" in invoke("adapter", "export", adapter, "--merge", "--output", output).stdout


def test_the_merged_weights_are_the_base_plus_the_adapter(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from viker.models.load import load_model, resolve

    invoke("adapter", "export", adapter, "--merge", "--output", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base = load_file(tiny_model_dir / "model.safetensors")
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert all("language_model" in name and name.endswith("_proj.weight") for name in changed)
    expected = load_model(resolve(str(adapter))).merge_and_unload().state_dict()
    found = load_model(resolve(str(tmp_path / "merged"))).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_unmerged_export_is_the_peft_files(adapter: Path, tmp_path: Path, picture: Path) -> None:
    output = tmp_path / "handed over"
    for name in ("training_log.jsonl", "trajectory.jsonl", "diagnose.jsonl"):
        (adapter / name).write_text("{}\n")
    told = invoke("adapter", "export", adapter, "--output", output).stdout
    assert "reversible: the base still knows" in told
    assert list(output.glob("*.jsonl")) == [], "what was measured while it was trained stays at home"
    name = "adapter_model.safetensors"
    assert (output / name).read_bytes() == (adapter / name).read_bytes()
    assert read_json(output / "provenance.json")["adapter"]["provenance"]["steps"] == 7
    asked = ("--image", picture, "--max-new-tokens", 6, QUESTION)
    assert json_of("ask", "--adapter", output, *asked)["reply"] == json_of("ask", "--adapter", adapter, *asked)["reply"]
    refused = invoke("adapter", "export", adapter, "--merge", "--output", output, ok=False)
    assert "merge" in str(refused.exception)
    assert invoke("adapter", "export", adapter, "--output", adapter, ok=False).exit_code == 2


@pytest.fixture
def caches(isolated_cache_home: Path) -> Path:
    shutil.copytree(GOLDEN, isolated_cache_home)
    return isolated_cache_home


def golden_key() -> str:
    return next(GOLDEN.iterdir()).name


def test_caches_are_listed_damaged_ones_too(caches: Path) -> None:
    [row] = json_of("cache", "list")["caches"]
    assert (row["key"][:16], row["samples"], row["rows"], row["top_k"]) == (golden_key(), 3, 6, 4)
    (caches / golden_key() / "build.json").unlink()
    [damaged] = json_of("cache", "list")["caches"]
    assert "build.json" in damaged["problem"]
    assert "damaged" in invoke("cache", "list").stdout


def test_no_caches_are_a_list_too() -> None:
    assert json_of("cache", "list")["caches"] == []


@pytest.mark.parametrize("named", ["key", "path"])
def test_a_cache_is_inspected_by_key_or_path(caches: Path, named: str) -> None:
    told = json_of("cache", "inspect", golden_key()[:6] if named == "key" else GOLDEN / golden_key())
    assert told["summary"]["rows"] == 6
    assert 0 < told["summary"]["kept_mass_quantiles"][1] < 1
    assert told["fingerprint"]["objective"]["top_k"] == 4
    assert told["build"]["source"] == "tests"
    assert told["arrays"]["token/kept_id"] == [6, 4]
    assert told["bytes"] == sum(path.stat().st_size for path in (GOLDEN / golden_key()).rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["0000", "../evil", "zz", ""])
def test_no_such_cache_is_an_error(caches: Path, name: str) -> None:
    refused = invoke("cache", "inspect", name, ok=False)
    assert "expected a cache directory, or the first 4 or more digits" in str(refused.exception)


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_a_whole_cache_verifies(caches: Path, depth: str) -> None:
    assert json_of("cache", "verify", golden_key(), "--depth", depth)["problems"] == []


def test_a_flipped_byte_is_named_and_exits_with_1(caches: Path) -> None:
    path = caches / golden_key() / "cache.zarr" / "token" / "entropy" / "c" / "0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert invoke("cache", "verify", golden_key()).exit_code == 0
    found = invoke("cache", "verify", golden_key(), "--depth", "full", ok=False)
    assert found.exit_code == 1
    assert "checksum: cache.zarr/token/entropy/c/0" in found.stdout


@pytest.mark.parametrize("arguments", [("list",), ("inspect", golden_key()), ("verify", golden_key())])
def test_every_cache_command_says_how_private_it_is(caches: Path, arguments: tuple[str, ...]) -> None:
    assert "keep it as you keep the forget set" in invoke("cache", *arguments, "--json").stderr


def test_doctor_tells_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = json_of("doctor")
    assert found["schema"] == "viker/doctor/1"
    assert found["missing"] == []
    assert found["hub_offline"] is True
    assert found["device"].startswith(("cpu", "cuda"))
    assert found["disk"]["runs"]["free_bytes"] > 0
    assert "offline" in invoke("doctor").stdout


def test_doctor_fails_where_a_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from viker import doctor

    monkeypatch.setattr(doctor, "library_versions", lambda: {"torch": "absent", "numpy": "2"})
    found = invoke("doctor", ok=False)
    assert found.exit_code == 1
    assert "Missing: torch" in found.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from viker.cli import viker\n"
        "for name in ('report', 'ask', 'adapter', 'cache', 'doctor'):\n"
        "    assert CliRunner().invoke(viker, [name, '--help']).exit_code == 0, name\n"
        "heavy = {'torch', 'transformers', 'peft', 'zarr', 'numpy', 'nltk'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_inspecting_a_cache_needs_no_torch(caches: Path) -> None:
    program = (
        "import sys; from click.testing import CliRunner; from viker.cli import viker\n"
        f"assert CliRunner().invoke(viker, ['cache', 'inspect', {str(caches / golden_key())!r}]).exit_code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
