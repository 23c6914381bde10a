"""The embedded benchmark as work for `viker bench precompute`: its people, questions, pictures and sizes.

The weights are those of a fresh model, since speed does not depend on what was learnt; ids, lengths and which questions
and words return are the world's own.
"""

from pathlib import Path
from typing import Any

from ..data.halves import training_questions
from ..data.mini_files import make_mini
from ..data.references import make_pool, read_pool
from ..data.sources import open_source
from ..models.encode import Encoder
from ..models.interventions import Intervention
from ..models.load import load_encoder, load_model, resolve
from ..models.tiny import build_tiny_llava
from ..precompute.cache import row_key
from ..precompute.engines.rows import Pending
from ..precompute.run import Work, pending_of

NUM_PEOPLE = 60


def build_world(folder: Path, *, device: str, dtype: str) -> tuple[Any, Encoder]:
    """Write the world and its model into a folder, and return the model and its encoder."""
    make_mini(folder / "data", seed=0, num_people=NUM_PEOPLE)
    examples = training_questions(open_source(str(folder / "data")), "all")
    texts = [text for example in examples for text in (example.messages[-1].content, example.answer)]
    build_tiny_llava(folder / "model", texts, seed=0)
    checkpoint = resolve(str(folder / "model"), revision=None, processor=None)
    model = load_model(checkpoint, dtype=dtype, device=device, attention="sdpa", trust_remote_code=False)
    encoder = load_encoder(
        checkpoint, trust_remote_code=False, chat_template=None, system_prompt=None, score_end_token=None
    )
    return model, encoder


def world_work(folder: Path, encoder: Encoder, *, num_references: int, pool_size: int) -> list[Pending]:
    """Return every distinct question and answer of a world under references, as the teacher is asked them."""
    examples = training_questions(open_source(str(folder / "data")), "all")
    pool = make_pool("people", read_pool(folder / "data" / "pools" / "people").images[:pool_size])
    intervention = Intervention(
        kind="reference", pool=pool, num_references=num_references, seed=0, shared=pool_size == num_references
    )
    works = [Work(example, *ids, row_key(*ids, None)) for example in examples for ids in [encoder.ids(example)]]
    distinct = {work.row_key: work for work in works}.values()
    return [
        pending_of(work, intervention, encoder)
        for work in sorted(distinct, key=lambda work: (work.prompt_ids, work.answer_ids))
    ]
