"""What others may import from `viker`: exactly these names, typed, loaded on first use, enough for one's own loop."""

# M answer tokens, V vocabulary

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import viker
from viker.data.example import DataError
from viker.models.interventions import Intervention
from viker.models.load import load_encoder, resolve
from viker.precompute.cache import CacheMismatch
from viker.precompute.engines.naive import naive_rows
from viker.precompute.run import compute_blocks, make_request, start_builder
from viker.train.batches import stack_rows

if TYPE_CHECKING:
    from viker.models.load import Loaded

ROOT = Path(viker.__file__).parent
NAMES = [
    "EncodedImage", "Example", "Message", "TeacherCache", "__version__", "encode", "load_model", "open_cache",
    "open_source", "read_examples", "viker_loss",
]  # fmt: skip


def make_cache(tiny: Loaded, examples: list[viker.Example], kind: str, home: Path, **options: object) -> Path:
    intervention = Intervention(kind=kind, **options)
    identity = {"weights": "w", "tokenizer": tokenizer_of(tiny), "processor": "p"}
    identity |= {"rendering": tiny.rendering.identity()}
    request = make_request(
        tiny.encoder, examples, intervention, identity, top_k=8, teacher_dtype="float32", logprob_dtype="float32"
    )
    builder = start_builder(home, request, intervention, {})
    compute_blocks(
        builder,
        request,
        intervention,
        tiny.encoder,
        lambda work: naive_rows(tiny.model, work, tiny.encoder.pad_id),
        "cpu",
    )
    return builder.assemble()


def kept_of(teacher, row):
    return teacher.kept_ids_MK[row], teacher.kept_logprobs_MK[row].exp()


def tokenizer_of(tiny: Loaded) -> str:
    from viker.models.identity import tokenizer_digest

    return tokenizer_digest(tiny.encoder.tokenizer)


@pytest.fixture(scope="module")
def examples(training_examples):
    return list(training_examples[:3])


@pytest.fixture(scope="module")
def text_cache(tiny, examples, tmp_path_factory):
    return make_cache(tiny, examples, "text", tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def self_cache(tiny, examples, tmp_path_factory):
    return make_cache(tiny, examples, "self", tmp_path_factory.mktemp("self"))


def test_the_public_names_are_exactly_these():
    assert viker.__all__ == NAMES == sorted(NAMES)


def test_every_public_name_is_there_and_typed():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    imported = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(NAMES) - {"__version__"} <= imported, "mypy sees a name only under TYPE_CHECKING"
    assert all(getattr(viker, name) is not None for name in NAMES)


def test_training_questions_are_read_in_one_call(mini_world):
    assert [example.id for example in viker.read_examples(str(mini_world), "forget")] == [
        example.id for example in viker.open_source(str(mini_world)).training("forget")
    ]
    with pytest.raises(DataError):
        viker.read_examples(str(mini_world / "nowhere"))


def test_an_example_is_encoded_by_a_directory_or_an_encoder(tiny, tiny_model_dir, examples):
    by_name, by_encoder = (viker.encode(examples[0], model) for model in (str(tiny_model_dir), tiny.encoder))
    assert by_name.input_ids == by_encoder.input_ids
    assert by_name.answer_ids


def test_rows_are_asked_by_ids_or_by_example(text_cache, self_cache, tiny, tiny_model_dir, examples):
    encoded = viker.encode(examples[1], tiny.encoder)
    by_ids = viker.open_cache(text_cache).rows(encoded)
    by_example = viker.open_cache(text_cache, model=str(tiny_model_dir)).rows(examples[1])
    assert len(by_ids) == len(encoded.answer_ids)
    assert (by_ids.entropy_N == by_example.entropy_N).all()
    own = viker.open_cache(self_cache, model=str(tiny_model_dir))
    assert len(own) == len(examples)
    assert len(own.rows(examples[2])) == len(viker.encode(examples[2], tiny.encoder).answer_ids)


def test_rows_that_are_not_there_are_refused(text_cache, self_cache, tiny, examples, training_examples):
    with pytest.raises(CacheMismatch, match="expected rows for these"):
        viker.open_cache(text_cache).rows(viker.encode(training_examples[10], tiny.encoder))
    with pytest.raises(DataError, match="model="):
        viker.open_cache(text_cache).rows(examples[0])
    with pytest.raises(DataError, match="told apart by pictures"):
        viker.open_cache(self_cache).rows(viker.encode(examples[0], tiny.encoder))
    with pytest.raises(DataError, match="viker cache list"):
        viker.open_cache("nowhere")


def test_the_loss_is_the_ascent_and_the_divergence(text_cache, tiny, examples):
    cache = viker.open_cache(text_cache)
    encoded = [viker.encode(example, tiny.encoder) for example in examples]
    rows = [cache.rows(one) for one in encoded]
    answer_ids = [token for one in encoded for token in one.answer_ids]
    logits_MV = torch.randn(len(answer_ids), tiny.encoder.vocab_size, dtype=torch.float64, requires_grad=True)
    q_MV, teacher = logits_MV.detach().softmax(-1), stack_rows(rows, answer_ids)
    expected = 0.0
    for row, token in enumerate(answer_ids):
        kept = {int(id_): float(p) for id_, p in zip(*kept_of(teacher, row), strict=True)}
        kept.setdefault(token, float(teacher.answer_logprob_M[row].exp()))
        rest, q_rest = 1 - sum(kept.values()), 1 - float(sum(q_MV[row, id_] for id_ in kept))
        divergence = sum(p * (torch.log(torch.tensor(p)) - q_MV[row, id_].log()) for id_, p in kept.items())
        expected += float(q_MV[row, token].log()) + 0.3 * float(divergence)
        expected += 0.3 * rest * float(torch.log(torch.tensor(rest / q_rest)))
    loss = viker.viker_loss(logits_MV, rows, answer_ids, lambda_=0.3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert torch.isfinite(logits_MV.grad).all()
    with pytest.raises(DataError, match="of one length"):
        viker.viker_loss(logits_MV[1:], rows, answer_ids)


def test_the_page_runs(text_cache, mini_world, tiny_model_dir, tiny, monkeypatch, tmp_path):
    forget = viker.read_examples(str(mini_world), "forget")[:2]
    key = make_cache(tiny, forget, "text", tmp_path)
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    printed = io.StringIO()
    names = {"DATA": str(mini_world), "MODEL": str(tiny_model_dir), "KEY": str(key), "__name__": "page"}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "python.md", "exec"), names)
    assert printed.getvalue().count("nats") == 2


def test_an_encoder_is_loaded_without_weights(tiny_model_dir, examples):
    encoder = load_encoder(resolve(str(tiny_model_dir)))
    assert viker.encode(examples[0], encoder).answer_ids == encoder.ids(examples[0])[1]
