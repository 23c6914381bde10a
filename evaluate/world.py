"""Read what a finished run of the embedded benchmark knows about facts: recall by person, and the key-word AUROC."""

from pathlib import Path

from ..data.artefact import read_json
from ..data.sidecar import read_sidecar
from ..data.sources import open_source
from ..models.load import load_encoder, resolve
from ..precompute.cache import TeacherCache, cache_home
from .answers import read_answers
from .keywords import key_word_auroc
from .recall import fact_recall_by_person

Recall = dict[str, tuple[int, int]]


def recall_of_evaluation(run: Path, name: str) -> dict[str, Recall]:
    """Return for each split the (hits, facts) of every person, on image questions of the generation task."""
    answers = read_answers(run / "evaluations" / name / "answers.jsonl")
    facts = read_sidecar(open_source(str(run / "data")).location / "sidecar.json")
    shown = [answer for answer in answers if answer.task == "generation" and answer.modality == "image"]
    splits = dict.fromkeys(answer.split for answer in shown)
    return {
        split: fact_recall_by_person([answer for answer in shown if answer.split == split], facts) for split in splits
    }


def numbers_of_evaluation(run: Path, name: str) -> dict[str, float]:
    """Return `<split>_fact` (pooled over facts) and `<split>_rougeL` of a model's image questions, as in points."""
    numbers: dict[str, float] = {}
    for split, people in recall_of_evaluation(run, name).items():
        hits, number = (sum(column) for column in zip(*people.values(), strict=True))
        numbers[f"{split.replace('-', '_')}_fact"] = round(hits / number, 4)
    for record in read_json(run / "evaluations" / name / "scores.json")["scores"]:
        if (record["task"], record["modality"], record["metric"]) == ("generation", "image", "rougeL"):
            numbers[f"{record['split'].replace('-', '_')}_rougeL"] = round(record["value"], 4)
    return numbers


def key_word_auroc_of_run(run: Path) -> float:
    """Return the word-level AUROC of row entropy over the forget people's training answers."""
    stored = read_json(run / "precompute" / "reference-forget" / "provenance.json")["cache"]
    source = open_source(str(run / "data"))
    return key_word_auroc(
        TeacherCache.open(cache_home() / stored["key"][:16]), load_encoder(resolve(str(run / "vanilla"))),
        list(source.training("forget")), read_sidecar(source.location / "sidecar.json"), "reference",
    )  # fmt: skip
