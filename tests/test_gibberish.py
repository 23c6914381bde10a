"""The gibberish detector: the clean class is found by name, blank replies are 0, and numbers are a direct pass's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.example import DataError
from viker.evaluate.measures import gibberish
from viker.evaluate.measures.gibberish import (
    BLANK,
    CLEAN_RATE,
    MAX_LENGTH,
    P_CLEAN,
    Grade,
    gibberish_scores,
    grade_replies,
    load_detector,
    p_clean,
    words_on,
)

if TYPE_CHECKING:
    from pathlib import Path

    from viker.evaluate.measures.gibberish import Detector

LABELS = {0: "clean", 1: "mild gibberish", 2: "noise", 3: "word salad"}  # as published
REPLIES = [
    "she was born in lima.",
    "lima lima cork cork cork",
    "a",
    "dfdfer fgerfow2e0d qsqskdsd",
    "Она пекарь. 这个人 👩‍🍳",
    "the person is a baker and the person is a baker and a baker",
]
WORDS = ["she", "was", "born", "in", "lima", "cork", "the", "person", "is", "a", "baker", "and", ".", "b", "##o"]


def make_detector(directory: Path, labels: dict[int, str] | None = None) -> Path:
    """A tiny DistilBERT classifier of random weights, sharpened so that its classes differ from text to text."""
    from transformers import BertTokenizer, DistilBertConfig, DistilBertForSequenceClassification

    labels = LABELS if labels is None else labels
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(directory)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=80,
        num_labels=len(labels), id2label=labels, label2id={label: index for index, label in labels.items()},
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embeddings" not in name:
                weight.mul_(20)
        model.classifier.bias[0] = 2.0
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def detector_dir(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Path:
    return make_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def detector(detector_dir: Path) -> Detector:
    return load_detector(str(detector_dir))


def direct(directory: Path, reply: str, max_length: int = MAX_LENGTH) -> torch.Tensor:
    """The classes' probabilities of one text alone, by transformers and nothing of ours, in float64."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory).double().eval()
    inputs = AutoTokenizer.from_pretrained(directory)(
        reply, truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**inputs).logits[0].softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_numbers_are_those_of_a_direct_pass_whatever_shares_the_batch(
    detector: Detector, detector_dir: Path, batch_size: int
) -> None:
    grades = grade_replies(detector, REPLIES, batch_size=batch_size)
    expected = [direct(detector_dir, reply) for reply in REPLIES]
    assert [grade.p_clean for grade in grades] == pytest.approx([float(p[0]) for p in expected], abs=1e-6)
    assert [grade.is_clean for grade in grades] == [int(p.argmax()) == 0 for p in expected]
    assert p_clean(detector, REPLIES, batch_size=batch_size) == [grade.p_clean for grade in grades]
    assert {True, False} == {grade.is_clean for grade in grades}, "these texts show nothing: all of one class"
    assert len({round(grade.p_clean, 3) for grade in grades}) > 3


@pytest.mark.parametrize("name", ["clean", "Clean", "CLEAN "])
def test_the_clean_class_is_found_by_its_name_and_not_by_its_place(tmp_path: Path, name: str) -> None:
    make_detector(tmp_path, {0: "noise", 1: "word salad", 2: name})
    moved = load_detector(str(tmp_path))
    assert moved.clean == 2
    assert p_clean(moved, REPLIES[:1]) == pytest.approx([float(direct(tmp_path, REPLIES[0])[2])], abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "listed"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, "0 'LABEL_0', 1 'LABEL_1'"),
        ({0: "not clean", 1: "cleaner"}, "0 'not clean', 1 'cleaner'"),
        ({0: "clean", 1: "Clean"}, "0 'clean', 1 'Clean'"),
        ({0: "clean"}, "0 'clean'"),
    ],
)
def test_without_one_clean_class_among_several_the_labels_are_listed(
    tmp_path: Path, labels: dict[int, str], listed: str
) -> None:
    make_detector(tmp_path, labels)
    with pytest.raises(DataError, match="id2label: expected several classes, one of them named 'clean'") as failed:
        load_detector(str(tmp_path))
    assert listed in str(failed.value)


@pytest.mark.parametrize("blank", ["", " \n\t", "\u2003", "\u200b", "\x00\x01"])
def test_a_blank_reply_is_zero_and_never_shown(detector: Detector, monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    shown: list[str] = []
    real = gibberish._probabilities

    def watching(detector: Detector, replies: list[str], max_length: int) -> Any:
        shown.extend(replies)
        return real(detector, replies, max_length)

    monkeypatch.setattr(gibberish, "_probabilities", watching)
    grades = grade_replies(detector, [blank, REPLIES[0], blank])
    assert shown == [REPLIES[0]]
    assert grades[0] == grades[2] == BLANK
    assert not grades[1].is_blank
    assert p_clean(detector, [blank]) == [0.0]


def test_a_long_reply_is_cut_and_counted(detector: Detector, detector_dir: Path) -> None:
    long = "she was born in lima and " * 20
    short, cut = grade_replies(detector, [REPLIES[0], long], max_length=8)
    assert not short.is_cut
    assert cut.is_cut
    assert cut.p_clean == pytest.approx(float(direct(detector_dir, long, 8)[0]), abs=1e-6)
    assert words_on([short, cut, BLANK], 8) == "3 replies: 1 blank (scored 0, not shown), 1 cut at 8 tokens"


def test_a_reply_that_just_fits_is_not_cut(detector: Detector) -> None:
    assert not grade_replies(detector, ["she was born"], max_length=5)[0].is_cut
    assert grade_replies(detector, ["she was born"], max_length=4)[0].is_cut


@pytest.mark.parametrize("length", [0, 2, 81])
def test_a_length_that_cannot_be_read_is_refused(detector: Detector, length: int) -> None:
    with pytest.raises(DataError, match=f"expected a length of 3 to 80 tokens.*found {length}"):
        grade_replies(detector, REPLIES, max_length=length)


def test_means_count_blank_replies_as_zero() -> None:
    grades = [Grade(0.9, is_clean=True), Grade(0.4, is_clean=True), Grade(0.2, is_clean=False), BLANK]
    assert gibberish_scores(grades) == {P_CLEAN: pytest.approx(1.5 / 4), CLEAN_RATE: 0.5}


def test_no_replies_are_no_grades(detector: Detector) -> None:
    assert grade_replies(detector, []) == []


def test_weights_that_are_not_there_are_no_judge(tmp_path: Path, detector_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in detector_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {name: w for name, w in load_file(tmp_path / "model.safetensors").items() if "classifier" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"found 4 missing \(classifier.bias"):
        load_detector(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "distilbert", "dim": "x"}'),
        ("config.json", b'{"model_type": "distilbert", "id2label": "clean"}'),
        ("config.json", b'{"model_type": "distilbert", "id2label": {"0": "clean", "1": "noise"}}'),
        ("config.json", b'{"model_type": "llava"}'),
        ("model.safetensors", b"junk"),
        ("tokenizer.json", b'{"a": 1}'),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, detector_dir: Path, name: str, content: bytes) -> None:
    for file in detector_dir.iterdir():
        (tmp_path / file.name).write_bytes(content if file.name == name else file.read_bytes())
    with pytest.raises(DataError, match="expected a text classifier that transformers can load from safetensors"):
        load_detector(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path, detector_dir: Path) -> None:
    for file in detector_dir.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(DataError, match="can load from safetensors"):
        load_detector(str(tmp_path))


def test_code_beside_the_weights_does_not_run(tmp_path: Path, detector_dir: Path) -> None:
    for file in detector_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForSequenceClassification": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(DataError, match="expected a text classifier"):
        load_detector(str(tmp_path))


def test_a_hub_id_is_fetched_without_pickles_and_its_commit_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, detector_dir: Path
) -> None:
    snapshot = tmp_path / "abc123"
    snapshot.symlink_to(detector_dir)
    asked: list[Any] = []

    def fetch(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.extend([repository, revision, *allow_patterns])
        return str(snapshot)

    monkeypatch.setattr("viker.models.load.snapshot_download", fetch)
    found = load_detector("someone/detector", revision="main")
    assert (found.commit, found.spec, asked[:2]) == ("abc123", "someone/detector", ["someone/detector", "main"])
    assert set(asked[2:]) <= {"*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"}


@pytest.mark.parametrize("spec", ["no/such/place", "./nowhere", "nowhere"])
def test_a_place_that_is_none_is_named(spec: str) -> None:
    with pytest.raises(DataError, match=f"{spec}: expected a model directory or a hub id"):
        load_detector(spec)


def test_damaged_weights_give_no_number(detector_dir: Path) -> None:
    broken = load_detector(str(detector_dir))
    with torch.no_grad():
        broken.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="expected finite probabilities"):
        p_clean(broken, REPLIES)
