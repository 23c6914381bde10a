"""Examples that have something in common lie together, so that a block's engine can run it once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from viker.data.references import make_pool, read_pool
from viker.models.identity import teacher_identity
from viker.models.interventions import Intervention
from viker.precompute.run import Request, make_request, samples_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from viker.data.example import Example
    from viker.models.load import Loaded


def ask(tiny: Loaded, examples: Sequence[Example], intervention: Intervention) -> Request:
    identity = teacher_identity(tiny.checkpoint, tiny.encoder)
    options: dict[str, Any] = {"top_k": 4, "teacher_dtype": "float32", "logprob_dtype": "float16"}
    return make_request(tiny.encoder, examples, intervention, identity, **options)


def num_changes(values: Sequence[Any]) -> int:
    return sum(1 for _ in itertools.groupby(values))


@pytest.fixture(scope="module")
def reference(mini_world):
    pool = make_pool("small", read_pool(min((mini_world / "pools").iterdir())).images[:5])
    return Intervention(kind="reference", pool=pool, num_references=2, seed=0)


def test_questions_lie_together_and_so_do_answers_that_begin_alike(tiny, training_examples, reference):
    request = ask(tiny, training_examples, reference)
    works = request.by_row_key
    asked = [works[sample.row_key] for sample in samples_for(request, reference)]
    assert num_changes([work.prompt_ids for work in asked]) == len({work.prompt_ids for work in asked})
    texts = [(*work.prompt_ids, *work.answer_ids) for work in asked]
    assert texts == sorted(texts)


def test_what_shows_its_own_image_lies_with_what_shows_the_same(tiny, training_examples):
    own = Intervention(kind="self")
    request = ask(tiny, training_examples, own)
    works = request.by_row_key
    shown = [works[sample.row_key].example.images[0].sha256 for sample in samples_for(request, own)]
    assert num_changes(shown) == len(set(shown)) < len(shown)


def test_the_order_is_that_of_the_work_not_of_the_source(tiny, training_examples, reference):
    orders = [
        samples_for(ask(tiny, examples, reference), reference)
        for examples in (training_examples, training_examples[::-1])
    ]
    assert orders[0] == orders[1]


def test_people_who_share_rows_lie_side_by_side(tiny, training_examples, reference):
    samples = samples_for(ask(tiny, training_examples, reference), reference)
    keys = [sample.row_key for sample in samples]
    assert len(set(keys)) < len(keys)
    assert num_changes(keys) == len(set(keys))
