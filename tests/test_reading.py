"""Which rows a method is given: those it reads, scalars in whole rows, refusals, and what the log speaks of."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
import pytest
from viker.data.example import DataError
from viker.data.sources import open_source
from viker.models.identity import teacher_identity
from viker.precompute.cache import CacheMismatch
from viker.precompute.commands import command as precompute
from viker.train.choose_method import choose_method, unread_options
from viker.train.methods import METHODS
from viker.train.reading import Reader

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 4


@pytest.fixture(scope="module")
def run(mini_world: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with rows of every kind for a few forget questions, made by the command itself."""
    home = tmp_path_factory.mktemp("reading")
    patch = pytest.MonkeyPatch()
    patch.setenv("VIKER_CACHE_DIR", str(home / "caches"))
    where = ["--run", str(home / "run"), "--data", str(mini_world), "--model", str(tiny_model_dir)]
    pool = ["--pool", str(mini_world / "pools" / "people"), "--num-references", "2"]
    made = {words for method in METHODS.values() for words in method.precomputes}
    for words in sorted(made):
        limit = [] if "retain-seen" in words else ["--limit", str(LIMIT)]
        references = pool if "reference" in words else []
        kept = [] if "--top-k" in words else ["--top-k", "8"]
        precompute.main([*where, *words, *limit, *references, *kept], standalone_mode=False)
    yield {"home": home, "run": home / "run"}
    patch.undo()


@pytest.fixture
def reader(run, tiny, mini_world, tiny_model_dir, monkeypatch):
    monkeypatch.setenv("VIKER_CACHE_DIR", str(run["home"] / "caches"))
    return reader_of(run["run"], tiny, mini_world, tiny_model_dir)


def reader_of(run: Path | None, tiny: Any, mini_world: Path, model: Path, **changed: Any) -> Reader:
    options = {
        "run": run, "cache": (), "top_k": 8, "teacher_from": "cache", "instruction": None, "override": (),
        "limit": LIMIT, "skip_text": False, "data": str(mini_world), "ratio": None, "data_revision": None,
        "model": str(model), "processor": None, "revision": None, "chat_template": None, "system_prompt": None,
        "forget": (), "score_end_token": None, "bf16": False, "dtype": "float32",
    } | changed  # fmt: skip
    from viker.data.instructions import PRIVACY_INSTRUCTION

    options["instruction"] = changed.get("instruction", PRIVACY_INSTRUCTION if changed.get("prompted") else None)
    return Reader(
        options=options, source=open_source(str(mini_world)), encoder=tiny.encoder,
        identity=teacher_identity(tiny.checkpoint, tiny.encoder), fetch=lambda *_: False, announce=lambda _: None,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_finds_its_rows_in_a_run(run, tiny, mini_world, tiny_model_dir, monkeypatch, name):
    monkeypatch.setenv("VIKER_CACHE_DIR", str(run["home"] / "caches"))
    method = METHODS[name]
    prompted = method.reads is not None and method.reads.kind == "prompt"
    reader = reader_of(run["run"], tiny, mini_world, tiny_model_dir, prompted=prompted)
    forget, retain = reader.forget(method), reader.retain(method)
    assert len(forget) == LIMIT
    assert all((item.rows is not None) == (method.reads is not None) for item in forget)
    assert all(item.log_rows is not None for item in forget), "the log speaks of key tokens whatever a method reads"
    assert bool(retain) == method.needs_retain
    assert all((item.rows is not None) == method.reads_retain_rows for item in retain)
    assert all((item.refusal is not None) == method.refusals for item in forget)
    if method.reads is not None:
        assert reader.caches["forget"].fingerprint["intervention"]["kind"] == method.reads.kind


def test_scalars_are_in_whole_rows_too(reader, run):
    scalars = run["run"] / "precompute" / "self-forget-scalars" / "COMPLETE"
    scalars.rename(scalars.with_name("hidden"))
    try:
        reader.forget(METHODS["npo"])
        assert reader.caches["forget"].top_k > 0
    finally:
        scalars.with_name("hidden").rename(scalars)
    reader.forget(METHODS["npo"])
    assert reader.caches["forget"].top_k == 0


def test_refusals_have_rows_of_their_own(reader):
    forget = reader.forget(METHODS["idkpo"])
    for item in forget:
        assert item.refusal is not None
        assert item.refusal.answer_ids != item.answer_ids
        assert item.refusal.rows is not None
        assert len(item.refusal.rows) == len(item.refusal.answer_ids)
    assert reader.caches["refusal"].fingerprint["intervention"]["answers"] == "refusal"


def test_rows_that_are_missing_name_the_command_that_makes_them(tiny, mini_world, tiny_model_dir):
    reader = reader_of(None, tiny, mini_world, tiny_model_dir)
    with pytest.raises(CacheMismatch, match="Make the rows with") as error:
        reader.forget(METHODS["undial"])
    words = shlex.split(str(error.value).splitlines()[-1])
    assert words[:2] == ["viker", "precompute"]
    parsed = precompute.make_context("precompute", words[2:], resilient_parsing=True)
    assert isinstance(parsed, click.Context)
    assert (parsed.params["teacher"], parsed.params["top_k"]) == ("self", 8)


def test_a_live_teacher_needs_no_cache(tiny, mini_world, tiny_model_dir):
    reader = reader_of(None, tiny, mini_world, tiny_model_dir, teacher_from="online")
    assert all(item.rows is None for item in reader.forget(METHODS["viker"]))
    assert reader.caches == {}


def test_options_that_a_method_has_no_term_for_are_told():
    asked = {"lambda_": 0.1, "ascent": "adaptive", "regularizer": "jsd", "token_lambda": "entropy", "teacher": "self"}
    assert unread_options("viker", **asked) == []
    assert unread_options("ga", **asked) == ["--lambda", "--regularizer", "--token-lambda", "--teacher"]
    assert unread_options("npo", **asked) == ["--lambda", "--ascent", "--regularizer", "--token-lambda"]
    nothing = {"lambda_": None, "ascent": None, "regularizer": None, "token_lambda": "constant", "teacher": None}
    assert all(unread_options(name, **nothing) == [] for name in METHODS)
    with pytest.raises(DataError):
        unread_options("magic", **nothing)


def test_adaptive_ascent_on_another_method_reads_the_teachers_scalars():
    method = choose_method("ga", ascent="adaptive")
    assert method.reads is not None
    assert method.stored_rows == ("reference-forget-scalars",)
