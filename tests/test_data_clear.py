"""The CLEAR reader on a tiny tree in the published schema, and on what real downloads get wrong."""

import logging
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import clear_fixture as fixture
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mllmu_fixture import write_table
from viker.cli import viker
from viker.data import clear_people, clear_rows
from viker.data.clear import ClearSource
from viker.data.clear_people import UNNAMED, Mentions
from viker.data.clear_rows import CAPTION_QUESTIONS, CONFIGS, NAME_QUESTION, PUBLISHED, folder_of
from viker.data.example import DataError, Example
from viker.data.limited import FirstPeople
from viker.data.sources import open_source

PERTURBED_ROW = fixture.caption_row("Person C", 0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture.write_clear(tmp_path_factory.mktemp("clear"))


def people_in(examples: list[Example]) -> set[str]:
    return {person for example in examples for person in example.people}


def by_id(examples: list[Example]) -> dict[str, Example]:
    found = {example.id: example for example in examples}
    assert len(found) == len(examples), "ids are unique"
    return found


def counts(examples: list[Example]) -> dict[tuple[str, str], int]:
    return dict(Counter((example.task, example.modality) for example in examples))


def read(root: Path, split: str, **options: Any) -> list[Example]:
    return list(ClearSource(location=root, **options).read(split))


def with_row(root: Path, config: str, changes: dict[str, Any], schema: pa.Schema | None = None) -> Path:
    """Write one config whose second row is changed."""
    rows = fixture.rows_of(config)
    rows[1] |= changes
    write_table(root / folder_of(config), rows, schema or fixture.SCHEMAS[config])
    return root


# What is published


def test_all_21_configs_are_known_and_read(tree: Path) -> None:
    assert set(PUBLISHED) == set(fixture.SCHEMAS)
    assert len(PUBLISHED) == 21
    assert set(ClearSource(location=tree).splits()) == set(PUBLISHED)
    for config in PUBLISHED:
        assert read(tree, config), config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("default", {("captioning", "image"): 60}),
        ("forget01", {("captioning", "image"): 3}),
        ("retain99", {("captioning", "image"): 58}),
        ("forget01+tofu", {("captioning", "image"): 3, ("generation", "text"): 2}),
        ("full+tofu", {("captioning", "image"): 59, ("generation", "text"): 41}),
        ("forget10_perturbed", {("captioning", "image"): 11, ("recognition", "image"): 11}),
        ("retain_perturbed", {("captioning", "image"): 24, ("recognition", "image"): 24}),
        ("real_faces", {("recognition", "image"): 2}),
        ("real_world", {("generation", "image"): 3}),
    ],
)
def test_what_the_rows_of_a_config_become(tree: Path, config: str, expected: dict[tuple[str, str], int]) -> None:
    assert counts(read(tree, config)) == expected


def test_a_caption_is_asked_in_a_published_wording_and_kept_as_published(tree: Path) -> None:
    example = by_id(read(tree, "forget01"))["forget01/00001/captioning"]
    assert example.question in CAPTION_QUESTIONS
    assert example.answer == "Here we see Person C in picture 1."
    assert (example.people, example.paraphrase, example.wrong) == (("Person C",), "", ())
    assert example.images[0].data == fixture.picture(7)
    assert "train-00000-of-00001.parquet: row 1, image" in example.images[0].origin


def test_the_wording_depends_on_the_row_and_the_seed_not_on_the_folder(tree: Path) -> None:
    asked = [
        {example.answer: example.question for example in read(tree, config) if example.task == "captioning"}
        for config in ("forget10", "forget10+tofu", "forget10_perturbed")
    ]
    assert asked[0].items() >= asked[1].items()
    assert asked[0].items() >= asked[2].items()
    assert len(set(asked[0].values())) > 1
    other = {example.answer: example.question for example in read(tree, "forget10", question_seed=1)}
    assert other.keys() == asked[0].keys()
    assert other != asked[0]


def test_a_perturbed_row_gives_a_caption_and_a_name_with_what_is_wrong(tree: Path) -> None:
    found = by_id(read(tree, "forget01_perturbed"))
    caption, name = found["forget01_perturbed/00000/captioning"], found["forget01_perturbed/00000/recognition"]
    assert caption.paraphrase == "Picture 0 shows Person C."
    assert caption.wrong == tuple(f"Picture 0 shows Stranger {number}." for number in range(5))
    assert (name.question, name.answer) == (NAME_QUESTION, "Person C")
    assert name.wrong == tuple(f"Stranger {number}" for number in range(5))
    assert caption.images[0].sha256 == name.images[0].sha256


def test_column_orders_do_not_matter(tree: Path) -> None:
    orders = [
        pq.read_schema(next((tree / name).glob("*"))).names for name in ("forget01_perturbed", "retain_perturbed")
    ]
    assert orders[0] != orders[1]
    first, other = (read(tree, config)[0] for config in ("forget01_perturbed", "retain_perturbed"))
    assert first.wrong == other.wrong


def test_real_questions_have_the_other_options_as_wrong_answers(tree: Path) -> None:
    faces, things = by_id(read(tree, "real_faces")), by_id(read(tree, "real_world"))
    face = faces["real_faces/00001/recognition"]
    assert (face.question, face.answer, face.people) == (NAME_QUESTION, "Star 1", ("Star 1",))
    assert face.wrong == ("Star 0", "Star 9")
    thing = things["real_world/00002/generation"]
    assert (thing.question, thing.answer, thing.wrong) == ("What is thing 2?", "a cat", ("a dog", "a tree"))
    assert thing.people == ("real_world/00002",)


def test_an_option_that_is_the_right_answer_is_no_wrong_one(tmp_path: Path) -> None:
    root = with_row(tmp_path, "real_faces", {"options": ["Star 1", "Star 0"]})
    assert read(root, "real_faces")[1].wrong == ("Star 0",)


def test_text_questions_have_no_picture(tree: Path) -> None:
    example = next(example for example in read(tree, "forget01+tofu") if example.task == "generation")
    assert (example.images, example.messages[0].content) == ((), "Where was Person C born?")
    assert example.answer == "In a quiet town by the sea."


def test_rows_are_numbered_across_shards(tree: Path) -> None:
    found = by_id(read(tree, "full+tofu"))
    assert {f"full+tofu/{number:05d}" for number in range(101)} == {name.rsplit("/", 1)[0] for name in found} | {
        "full+tofu/00057"
    }


# Who a row without a name is about


def test_captions_belong_to_those_under_whose_name_they_are_published(tree: Path) -> None:
    named = {example.images[0].sha256: example.people for example in read(tree, "full")}
    shown = [example for example in read(tree, "full+tofu") if example.images]
    assert all(example.people == named[example.images[0].sha256] for example in shown)
    shared = [example.people for example in shown if example.answer == fixture.SHARED_CAPTION]
    assert shared == [("Person A",), ("Person B",)], "the picture decides"


def test_pictures_are_not_digested_where_captions_decide(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clear_people, "row_picture", lambda row: pytest.fail("a picture was read"))
    assert len(read(tree, "forget05+tofu")) == 10


def test_text_questions_are_about_whom_they_name(tree: Path) -> None:
    asked = [example for example in read(tree, "forget10+tofu") if not example.images]
    assert [example.people for example in asked] == [(person,) for person in fixture.FORGET[10] for _ in range(2)]


def test_questions_that_name_nobody_are_said(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    unnamed = [example for example in read(tree, "full+tofu") if example.people == (UNNAMED,)]
    assert [example.question for example in unnamed] == ["What is the book about?"]
    assert "full+tofu: 1 questions name nobody known; read as about 'unnamed'" in caplog.text


def test_mentions_are_whole_names_longest_first_question_before_answer() -> None:
    mentions = Mentions(["Ana Lee", "Ana Lee-Wu", "Zo\u00eb B."])
    assert mentions.people("Is Ana Lee-Wu here?", "Ana Lee is.") == ("Ana Lee-Wu",)
    assert mentions.people("Does Joana Lee know?", "Ana Lee's book, by Zoe\u0308 B.") == ("Ana Lee", "Zo\u00eb B.")
    assert mentions.people(None, "Nobody.") == (UNNAMED,)
    assert Mentions([]).people("Ana Lee?", "") == (UNNAMED,)


def test_without_named_configs_nobody_is_known(tmp_path: Path) -> None:
    source = ClearSource(location=fixture.write_clear(tmp_path, ["full+tofu"]))
    assert people_in(list(source.training("all"))) == {UNNAMED}
    with pytest.raises(DataError, match=r"expected full/\*.parquet or data/\*.parquet, found full\+tofu"):
        source.people()


# Splits


@pytest.mark.parametrize("ratio", [1, 5, 10])
def test_ratio_chooses_the_published_split(tree: Path, ratio: int) -> None:
    source = ClearSource(location=tree, ratio=ratio)
    forget, retain = set(fixture.FORGET[ratio]), set(fixture.PEOPLE) - set(fixture.FORGET[ratio])
    assert source.people() == set(fixture.PEOPLE)
    assert source.forget_people() == forget
    assert people_in(list(source.read("forget"))) == forget
    assert people_in(list(source.training("forget"))) == forget
    assert people_in(list(source.read("retain"))) == retain | {UNNAMED}
    assert people_in(list(source.training("retain"))) == retain | {UNNAMED}
    assert people_in(list(source.training("all"))) == {UNNAMED, *fixture.PEOPLE}


def test_forget_is_captions_names_and_text_questions(tree: Path) -> None:
    assert counts(read(tree, "forget")) == {
        ("captioning", "image"): 11, ("recognition", "image"): 11, ("generation", "text"): 8,
    }  # fmt: skip
    assert {example.id.partition("/")[0] for example in read(tree, "forget")} == {"forget10_perturbed", "forget10+tofu"}
    assert {example.id.partition("/")[0] for example in read(tree, "retain")} == {"retain_perturbed", "retain90+tofu"}


def test_published_parts_need_not_add_up(tree: Path) -> None:
    whole, forget, retain = (len(read(tree, config)) for config in ("full", "forget01", "retain99"))
    assert forget + retain > whole


def test_clear_has_no_test_questions(tree: Path) -> None:
    assert read(tree, "test") == []


def test_real_is_faces_and_things_as_far_as_they_are_there(tree: Path, tmp_path: Path) -> None:
    assert counts(read(tree, "real")) == {("recognition", "image"): 2, ("generation", "image"): 3}
    fixture.write_clear(tmp_path, ["full", "real_world"])
    assert counts(read(tmp_path, "real")) == {("generation", "image"): 3}


def test_what_is_unlearned_always_shows_a_picture(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ClearSource(location=tree)
    with caplog.at_level(logging.INFO):
        assert counts(list(source.training("forget"))) == {("training", "image"): 12}
    assert "8 text questions about the people to forget are asked, not unlearned" in caplog.text
    assert counts(list(source.training("retain"))) == {("training", "image"): 48, ("training", "text"): 33}
    assert counts(list(source.training("all"))) == {("training", "image"): 59, ("training", "text"): 41}


def test_plain_configs_stand_in_where_others_are_missing(tmp_path: Path) -> None:
    source = ClearSource(location=fixture.write_clear(tmp_path, ["forget10", "retain90"]))
    assert source.people() == set(fixture.PEOPLE)
    assert counts(list(source.read("forget"))) == {("captioning", "image"): 12}
    assert counts(list(source.read("retain"))) == {("captioning", "image"): 48}
    assert counts(list(source.training("all"))) == {("training", "image"): 60}


def test_captions_of_tofu_stand_in_for_the_plain_forget_config(tmp_path: Path) -> None:
    fixture.write_clear(tmp_path, ["full", "forget10_perturbed", "forget10+tofu", "retain90"])
    assert counts(list(ClearSource(location=tmp_path).training("forget"))) == {("training", "image"): 11}


def test_named_people_divide_full(tree: Path) -> None:
    source = ClearSource(location=tree, forget=frozenset({"Person B", "Zoë Brontë"}))
    forget = {"Person B", "Zoë Brontë"}
    assert people_in(list(source.read("forget"))) == people_in(list(source.training("forget"))) == forget
    assert counts(list(source.training("forget"))) == {("training", "image"): 6}
    assert people_in(list(source.read("retain"))) == set(fixture.PEOPLE) - forget
    assert people_in(list(source.training("retain"))) == set(fixture.PEOPLE) - forget
    assert source.skipped()["training retain"] == {
        "about nobody known, who may be a person to forget": 1, "caption is blank": 1,
    }  # fmt: skip


def test_a_person_to_forget_is_left_out_of_retain_perturbed(tmp_path: Path) -> None:
    root = fixture.write_clear(tmp_path, ["full", "forget10"])
    with_row(root, "retain_perturbed", {"name": "Person C"})
    source = ClearSource(location=root)
    assert "Person C" not in people_in(list(source.read("retain")))
    assert source.skipped()["retain"] == {"about a person to forget": 1}


def test_retained_people_are_needed(tmp_path: Path) -> None:
    fixture.write_clear(tmp_path, ["full", "forget10"])
    with pytest.raises(
        DataError, match=r"expected retain90\+tofu/\*.parquet or retain90/\*.parquet, found full, forget10"
    ):
        ClearSource(location=tmp_path).training("forget")
    assert list(ClearSource(location=tmp_path, allow_no_retain=True).training("forget"))
    with pytest.raises(DataError, match="nobody is left to retain"):
        ClearSource(location=tmp_path, forget=frozenset(fixture.PEOPLE)).training("forget")


def test_private_perturbed_configs_can_be_read_by_name(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "retain95_perturbed").symlink_to(tree / "retain_perturbed")
    assert "retain95_perturbed" in CONFIGS
    assert len(read(tmp_path, "retain95_perturbed")) == 48


def test_the_first_people_are_kept_in_every_split(tree: Path) -> None:
    cut = FirstPeople(ClearSource(location=tree), 2)
    assert cut.forget_people() == {"Person C", "Person D"}
    assert people_in(list(cut.read("forget"))) == people_in(list(cut.training("forget"))) == {"Person C", "Person D"}
    assert people_in(list(cut.read("retain"))) == {"Person A", "Person B", UNNAMED}
    real = Counter(example.id.partition("/")[0] for example in cut.read("real"))
    assert real == {"real_faces": 2, "real_world": 2}, "the first so many of each folder"


# Opening


def test_the_layout_is_recognised(tree: Path, tmp_path: Path) -> None:
    source = open_source(str(tree), ratio="01")
    assert isinstance(source, ClearSource)
    assert source.forget_people() == set(fixture.FORGET[1])
    fixture.write_clear(tmp_path, ["default"])
    assert isinstance(open_source(str(tmp_path)), ClearSource)
    with pytest.raises(DataError, match="expected the folder above it, found one split"):
        open_source(str(tree / "full+tofu"))


def test_a_folder_called_data_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"CLEAR's \(full, forget10, full\+tofu \.\.\.\)"):
        open_source(str(tmp_path))


def test_two_layouts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "ft_Data").mkdir()
    with pytest.raises(DataError, match="expected one layout, found ft_Data/ and full/"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("ratio", [15, "0", "ten"])
def test_ratios_are_those_of_the_layout(tree: Path, ratio: int | str) -> None:
    with pytest.raises(DataError, match=f"--ratio: expected 1, 5, 10, found {ratio!r}"):
        open_source(str(tree), ratio=ratio)


def test_unknown_people_are_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"found unknown Zoe\. Known are Person A, "):
        open_source(str(tree), forget=["Zoe"])


def test_data_make_pins_and_counts(tree: Path, tmp_path: Path) -> None:
    words = ["data", "make", str(tree), str(tmp_path / "run"), "--ratio", "5", "--limit", "1"]
    result = CliRunner().invoke(viker, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert "test    0 people, 0 images, {}" in result.output
    assert open_source(str(tmp_path / "run")).forget_people() == {"Person C"}


# Files


def digests(root: Path, split: str) -> dict[str, str]:
    return {example.id: example.digest() for example in read(root, split)}


@pytest.mark.parametrize("config", ["full+tofu", "forget01_perturbed", "real_faces", "real_world"])
def test_pandas_files_read_the_same(tree: Path, tmp_path: Path, config: str) -> None:
    (tmp_path / "full").symlink_to(tree / "full")
    frame = pd.concat([pd.read_parquet(path) for path in sorted((tree / config).glob("*"))], ignore_index=True)
    (tmp_path / config).mkdir()
    frame.to_parquet(tmp_path / config / "train-00000-of-00001.parquet")
    assert digests(tmp_path, config) == digests(tree, config)


def test_a_picture_without_bytes_and_path_is_none(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to(tree / "full")
    rows = fixture.rows_of("forget01+tofu")
    for row in rows:
        row["image"] = row["image"] or {"bytes": None, "path": None}
    write_table(tmp_path / "forget01+tofu", rows, fixture.TOFU)
    assert digests(tmp_path, "forget01+tofu") == digests(tree, "forget01+tofu")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for count in (24, 96):
        rows = [
            {"image": {"bytes": number.to_bytes(4, "big") * 2**16, "path": None}, "caption": str(number), "name": "Ana"}
            for number in range(count)
        ]
        write_table(tmp_path / str(count) / "full", rows, fixture.PLAIN, row_group_size=4)
        before, arrow = pa.total_allocated_bytes(), 0
        tracemalloc.start()
        for _ in ClearSource(location=tmp_path / str(count)).read("full"):
            arrow = max(arrow, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
    small, large = peaks
    assert large < small * 1.5
    assert large < 12 * 2**20, "the file holds 24 MiB of pictures"


def test_people_are_read_without_their_pictures(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clear_rows, "read_picture", lambda *_: pytest.fail("a picture was read"))
    source = ClearSource(location=tree)
    assert source.people() == set(fixture.PEOPLE)
    assert source.forget_people() == set(fixture.FORGET[10])


# What downloads get wrong


def test_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 500000000\n"
    (tmp_path / "full" / "train-00000-of-00001.parquet").write_text(pointer)
    for ask in (lambda source: list(source.read("full")), lambda source: source.people()):
        with pytest.raises(DataError, match=r"found a git-lfs pointer\. Run `git lfs pull`"):
            ask(ClearSource(location=tmp_path))


def test_missing_shard(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "full+tofu").mkdir()
    name = "train-00001-of-00002.parquet"
    (tmp_path / "full+tofu" / name).write_bytes((tree / "full+tofu" / name).read_bytes())
    with pytest.raises(DataError, match=r"full\+tofu: expected 2 shards, found 1"):
        read(tmp_path, "full+tofu")


def test_missing_folder_names_what_is_there(tmp_path: Path) -> None:
    fixture.write_clear(tmp_path, ["full"])
    with pytest.raises(DataError, match=r"expected forget05/\*.parquet or forget05_perturbed/\*.parquet, found full\."):
        ClearSource(location=tmp_path, ratio=5).forget_people()
    with pytest.raises(DataError, match=r"expected real_faces/\*.parquet or real_world/\*.parquet, found full\."):
        read(tmp_path, "real")


def test_unknown_split_lists_the_known_ones(tree: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of forget, retain, test, real, default, full, .*found 'data'"):
        read(tree, "data")


@pytest.mark.parametrize(
    ("config", "column"),
    [
        ("full", "name"), ("full", "caption"), ("forget10+tofu", "question"), ("forget10_perturbed", "perturbed_names"),
        ("real_faces", "options"), ("real_world", "question"),
    ],
)  # fmt: skip
def test_missing_column(tmp_path: Path, config: str, column: str) -> None:
    schema = fixture.SCHEMAS[config]
    write_table(tmp_path / config, fixture.rows_of(config), schema.remove(schema.get_field_index(column)))
    with pytest.raises(DataError, match=rf"expected column\(s\) {column}, found image|{column}, found.*therem/CLEAR"):
        read(tmp_path, config)


def test_people_need_a_column_of_names(tmp_path: Path) -> None:
    write_table(tmp_path / "full", fixture.rows_of("full"), fixture.PLAIN.remove(2))
    with pytest.raises(DataError, match="expected a column name, found image, caption"):
        ClearSource(location=tmp_path).people()


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("full", {"name": " "}, "row 1, name: expected a person's name, found ' '"),
        ("full", {"name": None}, "row 1, name: expected a person's name, found None"),
        ("full", {"image": None}, "row 1, image: expected a picture, found None"),
        ("full", {"image": {"bytes": b"", "path": "a.png"}}, "image: expected a record with its bytes.*embedded"),
        ("full", {"image": {"bytes": None, "path": "a.png"}}, "image: expected a record with its bytes.*embedded"),
        ("full", {"caption": "An <image> here"}, "row 1, caption: expected no literal <image>"),
        ("real_world", {"image": None}, "row 1, image: expected a picture, found None"),
        ("real_world", {"options": ["<image>"]}, r"options\[0\]: expected no literal <image>"),
    ],
)
def test_bad_cells_name_file_and_row(tmp_path: Path, config: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(with_row(tmp_path, config, changes), config)


@pytest.mark.parametrize(
    ("config", "changes", "reason"),
    [
        ("full", {"caption": ""}, "caption is blank"),
        ("forget01_perturbed", {"paraphrased_caption": None}, "paraphrase is blank"),
        ("forget01_perturbed", {"perturbed_names": ["A", None]}, "wrong caption or name is blank"),
        ("real_faces", {"answer": " "}, "question or answer is blank"),
        ("real_faces", {"options": ["A", ""]}, "option is blank"),
        ("forget01+tofu", {"question": "Who is Person C?", "answer": "x"}, "question beside a picture"),
        ("forget01+tofu", {"image": None, "question": "Who is Person C?", "answer": "x"}, "caption without a picture"),
        ("forget01+tofu", {"image": None, "caption": None}, "question or answer is blank"),
    ],
)
def test_what_is_left_out_is_counted(tmp_path: Path, config: str, changes: dict[str, Any], reason: str) -> None:
    source = ClearSource(location=with_row(tmp_path, config, changes))
    assert list(source.read(config))
    assert source.skipped()[config] == {reason: 1}


def test_null_lists_are_empty(tmp_path: Path) -> None:
    root = with_row(tmp_path, "forget01_perturbed", {"perturbed_captions": None, "perturbed_names": []})
    found = by_id(read(root, "forget01_perturbed"))
    assert found["forget01_perturbed/00001/captioning"].wrong == ()
    assert found["forget01_perturbed/00001/recognition"].wrong == ()


def test_cells_of_another_type(tmp_path: Path) -> None:
    for config, column, kind, message in (
        ("full", "image", pa.string(), "row 0, image: expected a record with its bytes, found 'no'"),
        ("full", "name", pa.int64(), "row 0, name: expected a person's name, found 7"),
        ("full", "caption", pa.int64(), "row 0, caption: expected text, found 7"),
        ("real_faces", "options", pa.string(), "row 0, options: expected a list of texts, found 'no'"),
        ("real_faces", "options", pa.list_(pa.int64()), r"row 0, options\[0\]: expected text, found 7"),
        ("forget01+tofu", "question", pa.int64(), "row 0, question: expected text, found 7"),
    ):
        value: Any = [7] if kind == pa.list_(pa.int64()) else 7 if kind == pa.int64() else "no"
        schema = fixture.SCHEMAS[config]
        index = schema.get_field_index(column)
        rows = [row | {column: value} for row in fixture.rows_of(config)]
        write_table(tmp_path / config, rows, schema.set(index, pa.field(column, kind)))
        with pytest.raises(DataError, match=message):
            read(tmp_path, config)


def test_huge_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clear_rows, "MAX_IMAGE_BYTES", 2000)
    with pytest.raises(DataError, match="row 1, image: expected at most 2000 bytes, found 2001"):
        read(with_row(tmp_path, "full", {"image": {"bytes": bytes(2001), "path": None}}), "full")


# Looking at it


def test_show_prints_paraphrase_and_wrong_answers(tree: Path) -> None:
    words = ["data", "show", str(tree), "--split", "forget01_perturbed"]
    output = CliRunner().invoke(viker, words, catch_exceptions=False).output
    assert "questions  captioning: 3 with image" in output
    assert "paraphrase Picture 0 shows Person C." in output
    assert output.count("\nwrong      Picture 0 shows Stranger") == 5
