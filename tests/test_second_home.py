"""Training on a machine that has the cache store alone: the same adapter, no teacher, no cache of something else."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import tree_bytes
from command_line import Outcome, call, copy_model, succeed
from viker.data.artefact import cache_home

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> Path:
    """A cache store with the references of the forget people and the retain people's own rows."""
    home = tmp_path_factory.mktemp("first home") / "caches"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIKER_CACHE_DIR", str(home))
        precompute(mini_world, tiny_model_dir, "--pool", mini_world / "pools" / "pets", "--num-references", 2)
        precompute(mini_world, tiny_model_dir, "--teacher", "self", "--split", "retain-seen")
    return home


def precompute(data: Path, model: Path, *options: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        succeed("precompute", "--data", data, "--model", model, "--top-k", 16, *options, "--json").out
    )
    return found


def train(data: Path, model: Path, *options: object, method: str = "viker") -> Outcome:
    """Train two steps; of an adapter without `--output` nobody asks."""
    return call(
        "train", "--data", data, "--model", model, "--method", method, "--top-k", 16, "--limit", LIMIT,
        "--per-device-train-batch-size", 3, "--learning-rate", 1e-3, "--no-stop", *options,
    )  # fmt: skip


@pytest.fixture
def second_home(store: Path, isolated_cache_home: Path) -> Path:
    shutil.copytree(store, isolated_cache_home)
    return isolated_cache_home


@pytest.fixture
def data(mini_world: Path, tmp_path: Path) -> Path:
    """The data as the second home has it: elsewhere, and without a single reference image."""
    shutil.copytree(mini_world, tmp_path / "data here", ignore=shutil.ignore_patterns("pools", "base", "looks"))
    return tmp_path / "data here"


def caches_of(home: Path) -> dict[str, bytes]:
    """The bytes of the caches, without the notes of runs beside them."""
    return {name: content for name, content in tree_bytes(home).items() if not name.startswith(".runs/")}


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["viker", "recommended"])
def test_the_copied_store_alone_gives_the_same_adapter(
    method: str, store: Path, second_home: Path, data: Path, mini_world: Path, tiny_model_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = caches_of(second_home)
    there = train(data, tiny_model_dir, "--run", tmp_path / "run", method=method)
    assert there.code == 0, there.err
    assert f"reference rows from {second_home}" in there.err
    assert "2 references per-example, seed 0" in there.err, "what the cache decides is reported"
    assert caches_of(second_home) == before, "nothing is computed, nothing is written"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"adapters"}
    (adapter,) = (tmp_path / "run" / "adapters").iterdir()

    monkeypatch.setenv("VIKER_CACHE_DIR", str(store))
    here = train(mini_world, tiny_model_dir, "--output", tmp_path / "here", method=method)
    assert here.code == 0, here.err
    assert weights(adapter) == weights(tmp_path / "here")
    caches = [json.loads((path / "provenance.json").read_text())["caches"] for path in (adapter, tmp_path / "here")]
    assert caches[0] == caches[1]
    assert caches[0].keys() == ({"forget", "retain"} if method == "recommended" else {"forget"})


def test_training_never_loads_a_teacher(
    second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viker.models import load

    loaded: list[Any] = []
    real = load.load_model
    monkeypatch.setattr(load, "load_model", lambda *words, **options: loaded.append(words) or real(*words, **options))
    assert train(data, tiny_model_dir, "--output", tmp_path / "adapter").code == 0
    assert len(loaded) == 1, "the student"


# ---- a cache of something else ---------------------------------------------------------------------------------------


def change_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    name = min(tensors)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    last = tokenizer["model"]["merges"].pop()
    tokenizer["model"]["merges"].insert(0, last)
    path.write_text(json.dumps(tokenizer))


def change_processor(model: Path) -> None:
    path = model / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(settings))


def change_rendering(model: Path) -> None:
    path = model / "viker_rendering.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score_end_token": False}))


CHANGES = {
    "weights": change_weights,
    "tokenizer": change_tokenizer,
    "processor": change_processor,
    "rendering.score_end_token": change_rendering,
}


def cached_fingerprint(home: Path, kind: str) -> dict[str, Any]:
    prints = [json.loads(path.read_text()) for path in home.glob("*/fingerprint.json")]
    return next(found for found in prints if found["intervention"]["kind"] == kind)


def shown(message: str, kind: str = "reference") -> dict[str, tuple[str, str]]:
    """Return field -> (cached, wanted) of the cache of the right kind, as the message lists them."""
    lines = re.findall(r"^  (\S+) +cache (.*?)  wanted (.*)$", message, flags=re.MULTILINE)
    parts = re.split(r" was made for something else:\n", message)
    chosen = next(part for part in parts[1:] if "intervention.kind" not in part.partition("\nAsk for")[0])
    found = re.findall(r"^  (\S+) +cache (.*?)  wanted (.*)$", chosen.partition("\nAsk for")[0], flags=re.MULTILINE)
    assert lines
    return {field: (cached, wanted) for field, cached, wanted in found}


@pytest.mark.parametrize("field", CHANGES)
def test_a_cache_of_another_model_is_refused_with_the_field_and_both_values(
    field: str, second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = copy_model(tiny_model_dir, tmp_path / "other")
    CHANGES[field](other)
    result = train(data, other, "--run", tmp_path / "run")
    assert result.code == 3, result.err
    differences = shown(result.message)
    assert differences.keys() == {field}
    cached, wanted = differences[field]
    assert cached != wanted
    value = cached_fingerprint(second_home, "reference")
    for part in field.split("."):
        value = value[part]
    assert cached == str(value)
    assert list((tmp_path / "run" / "adapters").iterdir()) == [], "nothing that could pass for an adapter"


def test_every_differing_field_is_named_at_once(
    second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = copy_model(tiny_model_dir, tmp_path / "other")
    for change in CHANGES.values():
        change(other)
    for how in (
        [],
        ["--cache", next(path.parent for path in second_home.glob("*/manifest.json") if is_reference(path))],
    ):
        result = train(data, other, *how, "--run", tmp_path / "run")
        assert result.code == 3
        assert shown(result.message).keys() == CHANGES.keys()


def is_reference(path: Path) -> bool:
    return '"kind":"reference"' in (path.parent / "fingerprint.json").read_text()


def test_another_system_prompt_is_another_rendering(
    second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    result = train(data, tiny_model_dir, "--system-prompt", "Be brief.", "--output", tmp_path / "x")
    assert result.code == 3
    assert shown(result.message)["rendering.system_prompt"] == ("None", "Be brief.")


def test_a_row_with_too_few_kept_tokens_is_refused(
    second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    result = train(data, tiny_model_dir, "--top-k", 32, "--output", tmp_path / "x")
    assert result.code == 3
    assert shown(result.message) == {"objective.top_k": ("16", "32")}


def test_an_empty_store_says_how_to_make_a_cache(data: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    result = train(data, tiny_model_dir, "--output", tmp_path / "x")
    assert result.code == 3
    assert "found none" in result.message
    assert printed_command(result)


# ---- rows that are missing -------------------------------------------------------------------------------------------


def printed_command(result: Outcome) -> list[str]:
    """Return the arguments of the command that the message says makes the rows."""
    command = result.message.partition("Make the rows with:\n")[2].splitlines()[0].strip()
    program, *words = shlex.split(command)
    assert (program, words[0]) == ("viker", "precompute")
    return words


def test_rows_that_are_missing_come_with_the_command_that_adds_them(
    data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    precompute(data, tiny_model_dir, "--pool", "patterns", "--num-references", 2, "--limit", LIMIT - 2)
    result = train(data, tiny_model_dir, "--output", tmp_path / "x")
    assert result.code == 3
    assert f"expected all {LIMIT} row keys asked for, found 2 of them missing" in result.message
    printed = result.message.partition("Add the rows with:\n")[2].splitlines()[0]
    program, *words = shlex.split(printed)
    assert (program, words[:2]) == ("viker", ["cache", "extend"])
    succeed(*words)
    assert train(data, tiny_model_dir, "--output", tmp_path / "x", "--cache", extended_cache(words[2])).code == 0


def extended_cache(parent: str) -> str:
    """Return the key of the cache that was made from another."""
    (found,) = [path.parent.name for path in cache_home().glob("*/manifest.json") if path.parent.name != parent]
    return found


def test_the_printed_command_makes_rows_of_this_very_rendering(
    data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    options = ("--teacher", "self", "--system-prompt", "Be brief.", "--no-score-end-token", "--ratio", "5")
    result = train(data, tiny_model_dir, *options, "--output", tmp_path / "x")
    assert result.code == 3
    succeed(*printed_command(result))
    made = train(data, tiny_model_dir, *options, "--output", tmp_path / "x")
    assert made.code == 0, made.err


def test_a_method_with_a_retain_term_names_the_command_for_those_rows(
    data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    precompute(data, tiny_model_dir, "--pool", "patterns", "--num-references", 2)
    result = train(data, tiny_model_dir, "--output", tmp_path / "x", method="recommended")
    assert result.code == 3
    words = printed_command(result)
    assert words[words.index("--teacher") + 1] == "self"
    assert words[words.index("--split") + 1] == "retain-seen"
    succeed(*words)
    assert train(data, tiny_model_dir, "--output", tmp_path / "x", method="recommended").code == 0


# ---- which cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(second_home: Path, mini_world: Path, tiny_model_dir: Path) -> list[dict[str, Any]]:
    """Two caches that both serve: they differ in the seed of the draw alone."""
    pool = ("--pool", mini_world / "pools" / "pets", "--num-references", 2)
    return [precompute(mini_world, tiny_model_dir, *pool, "--seed", seed) for seed in (0, 1)]


def test_several_serving_caches_are_listed_for_the_user_to_name_one(
    two: list[dict[str, Any]], data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    assert two[0]["pairs"] == 0, "the copied one"
    assert two[1]["pairs"] > 0, "another seed, asked for by name, is another cache"
    result = train(data, tiny_model_dir, "--output", tmp_path / "x")
    assert result.code == 3
    assert "found several. Name one by `--cache`" in result.message
    for cache in two:
        assert cache["path"] in result.message


def test_a_cache_is_named_by_key_by_the_beginning_of_it_or_by_path(
    two: list[dict[str, Any]], data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    adapters = []
    for index, name in enumerate((two[1]["key"], two[1]["key"][:8], two[1]["path"], two[0]["key"])):
        output = tmp_path / f"adapter {index}"
        result = train(data, tiny_model_dir, "--cache", name, "--output", output)
        assert result.code == 0, result.err
        adapters.append(weights(output))
    assert adapters[0] == adapters[1] == adapters[2] != adapters[3]


def test_each_kind_of_rows_finds_its_own_among_the_caches_named(
    two: list[dict[str, Any]], second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    own = next(path.parent for path in second_home.glob("*/manifest.json") if not is_reference(path))
    names = ("--cache", own, "--cache", two[1]["key"])
    result = train(data, tiny_model_dir, *names, "--output", tmp_path / "x", method="recommended")
    assert result.code == 0, result.err
    read = json.loads((tmp_path / "x" / "provenance.json").read_text())["caches"]
    assert (read["forget"]["key"], read["retain"]["key"][:16]) == (two[1]["key"], own.name)
    told = train(data, tiny_model_dir, *names, "--output", tmp_path / "y").err
    assert f"--cache {own}: this method does not read it" in told


def test_a_cache_that_is_named_and_not_read_is_an_error(
    second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    own = next(path.parent for path in second_home.glob("*/manifest.json") if not is_reference(path))
    result = train(data, tiny_model_dir, "--cache", own, "--output", tmp_path / "x")
    assert result.code == 3
    assert "expected a cache of reference rows" in result.message
    assert "of self rows" in result.message
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["0000", "no such folder/x"])
def test_a_cache_that_is_not_there_is_an_error(
    name: str, second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    result = train(data, tiny_model_dir, "--cache", name, "--output", tmp_path / "x")
    assert result.code == 1
    assert f"--cache {name}: expected a cache directory or the beginning of one key" in result.message


def test_rows_that_were_flipped_since_are_not_read(
    second_home: Path, data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    cache = next(path.parent for path in second_home.glob("*/manifest.json") if is_reference(path))
    path = cache / "cache.zarr" / "token" / "kept_logprob" / "c" / "0" / "0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)
    result = train(data, tiny_model_dir, "--output", tmp_path / "x")
    assert result.code == 1
    assert "damaged" in result.message
    assert not (tmp_path / "x").exists()
