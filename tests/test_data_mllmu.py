"""The MLLMU-Bench reader on a tiny tree in the published schema, and on what real downloads get wrong."""

import json
import logging
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import mllmu_fixture as fixture
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from viker.data import mllmu
from viker.data.example import DataError, Example
from viker.data.mllmu import MllmuSource


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture.write_mllmu(tmp_path_factory.mktemp("mllmu"))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture.write_baseline(tmp_path_factory.mktemp("baseline"))


def people_in(examples: list[Example]) -> set[str]:
    return {person for example in examples for person in example.people}


def by_id(examples: list[Example]) -> dict[str, Example]:
    found = {example.id: example for example in examples}
    assert len(found) == len(examples), "ids are unique"
    return found


def with_row(
    tmp_path: Path, changes: dict[str, Any], folder: str = "forget_10", schema: pa.Schema | None = None
) -> Path:
    """Write one folder whose second row is changed."""
    training = folder == "ft_Data"
    make = fixture.training_row if training else fixture.test_row if folder == "Test_Set" else fixture.split_row
    default = fixture.TRAINING_SCHEMA if training else fixture.SPLIT_SCHEMA
    default = fixture.TEST_SCHEMA if folder == "Test_Set" else default
    fixture.write_table(tmp_path / folder, [make("003"), make("012") | changes], schema or default)
    return tmp_path


def read(root: Path, split: str = "forget_10") -> list[Example]:
    return list(MllmuSource(location=root).read(split))


# What a row becomes


def test_splits_lists_what_is_published(tree: Path) -> None:
    assert MllmuSource(location=tree).splits() == mllmu.FOLDERS


def test_a_row_yields_every_question(tree: Path) -> None:
    counts = Counter((example.task, example.modality) for example in read(tree) if example.people == ("003",))
    assert counts == {
        ("classification", "image"): 5,
        ("classification", "text"): 5,
        ("cloze", "image"): 2,
        ("cloze", "text"): 2,
        ("generation", "image"): 2,
        ("generation", "text"): 2,
        ("description", "image"): 1,
    }


def test_classification_has_letters_and_keeps_the_picture_as_stored(tree: Path) -> None:
    example = by_id(read(tree))["forget_10/003/classification-image/3"]
    assert example.answer == "D"
    assert example.options == tuple((letter, f"image choice {letter} of 003") for letter in "ABCD")
    assert example.messages[0].content == "<image>\nimage question 3 on 003?"
    assert example.images[0].data == fixture.picture(3)
    assert "train-00000-of-00001.parquet: row 0, person 003" in example.images[0].origin


def test_index_is_the_place_in_the_published_list(tree: Path) -> None:
    found = by_id(read(tree))
    assert found["forget_10/003/generation-text/3"].question.startswith("generation 3")
    assert found["forget_10/012/cloze-image/2"].answer == "李小龍"
    assert found["forget_10/003/generation-text/3"].images == ()


def test_questions_of_a_row_share_one_picture(tree: Path) -> None:
    shown = {id(example.images[0]) for example in read(tree) if example.people == ("003",) and example.images}
    assert len(shown) == 1


def test_empty_and_null_task_lists_yield_nothing(tree: Path) -> None:
    tasks = {
        person: {example.task for example in read(tree, "retain_90") if example.people == (person,)}
        for person in (fixture.NO_CLASSIFICATION, fixture.NULL_TASKS)
    }
    assert tasks[fixture.NO_CLASSIFICATION] == {"cloze", "generation", "description"}
    assert tasks[fixture.NULL_TASKS] == {"description"}


def test_formats_and_missing_paths_do_not_matter(tree: Path) -> None:
    images = {example.people[0]: example.images[0] for example in read(tree, "Full_Set") if example.images}
    assert images["001"].data[:2] == b"\xff\xd8"
    assert images["002"].data[:2] in (b"II", b"MM")
    assert images["003"].data[:4] == b"\x89PNG"
    assert "(unnamed)" in images["004"].origin


# Splits


@pytest.mark.parametrize("ratio", [5, 10, 15])
def test_ratio_chooses_the_published_split(tree: Path, ratio: int) -> None:
    source = MllmuSource(location=tree, ratio=ratio)
    forget = set(fixture.FORGET[ratio])
    assert source.forget_people() == forget
    assert people_in(list(source.read("forget"))) == forget
    assert people_in(list(source.read("retain"))) == set(fixture.PEOPLE) - forget
    assert people_in(list(source.read("test"))) == forget
    assert people_in(list(source.read("real"))) == set(fixture.CELEBRITIES)
    assert people_in(list(source.training("forget"))) == forget
    assert people_in(list(source.training("retain"))) == set(fixture.PEOPLE) - forget
    assert people_in(list(source.training("all"))) == set(fixture.PEOPLE)


def test_named_people_divide_the_full_set(tree: Path) -> None:
    source = MllmuSource(location=tree, forget=frozenset({"001", "020"}))
    assert people_in(list(source.read("forget"))) == {"001", "020"}
    assert people_in(list(source.read("retain"))) == set(fixture.PEOPLE) - {"001", "020"}
    assert people_in(list(source.read("test"))) == {"001", "020"}
    assert people_in(list(source.training("forget"))) == {"001", "020"}
    assert next(source.read("forget")).id.startswith("Full_Set/001/")


def test_training_asks_with_the_picture(tree: Path) -> None:
    example = next(MllmuSource(location=tree).training("forget"))
    assert example.id == "ft_Data/003/training-image/0"
    assert (example.task, example.answer) == ("training", "Answer 0.")
    assert example.messages[0].content == "<image>\nTraining question 0 on Zoë Brontë?"


def test_additional_entries_are_skipped_and_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = MllmuSource(location=tree)
    with caplog.at_level(logging.WARNING):
        examples = list(source.training("forget"))
    assert Counter(example.people[0] for example in examples) == {"003": 4, "012": 4}
    assert source.skipped() == {"training forget": {"Additional_* entries are never trained on": 1}}
    assert "training forget: skipped" in caplog.text
    list(source.training("forget"))
    assert source.skipped()["training forget"] == {"Additional_* entries are never trained on": 1}, "per read"


def test_blank_questions_and_wrong_letters_are_counted(tmp_path: Path) -> None:
    wrong = fixture.choices("012", "image", 2)
    wrong[0]["Correct_Answer"] = "E"
    wrong[1]["Question"] = " "
    task = {"Image_Textual_Questions": wrong, "Pure_Text_Questions": []}
    source = MllmuSource(location=with_row(tmp_path, {"Classification_Task": task, "answer": None}))
    found = {example.id for example in source.read("forget_10")}
    assert "forget_10/012/cloze-image/0" in found
    assert not any("012/classification" in name or "012/description" in name for name in found)
    reasons = {"answer is none of the options": 1, "question or answer is blank": 2}
    assert source.skipped() == {"forget_10": reasons}


def test_a_second_row_of_a_person_keeps_ids_unique(tmp_path: Path) -> None:
    with_row(tmp_path, {"ID": "003"})
    assert "forget_10/003~2/cloze-image/0" in by_id(read(tmp_path))


# Test_Set


def test_test_set_draws_one_picture_for_each_question(tree: Path) -> None:
    examples = [example for example in read(tree, "Test_Set") if example.images]
    poses = {fixture.picture(int(person) * 10 + pose) for person in fixture.PEOPLE for pose in range(3)}
    assert all(len(example.images) == 1 and example.images[0].data in poses for example in examples)
    drawn = {(example.people, example.images[0].sha256) for example in examples}
    assert len(drawn) > 2 * len(fixture.PEOPLE), "a person's questions show different pictures"


def test_the_draw_depends_on_seed_person_and_question_only(tree: Path) -> None:
    whole = by_id(read(tree, "Test_Set"))
    named = MllmuSource(location=tree, forget=frozenset({"018"}))
    assert all(whole[example.id].digest() == example.digest() for example in named.read("test"))
    other = by_id(list(MllmuSource(location=tree, test_image_seed=1).read("Test_Set")))
    assert whole.keys() == other.keys()
    assert any(whole[name].digest() != other[name].digest() for name in whole)


def test_people_missing_from_test_set_are_said(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(MllmuSource(location=tree, forget=frozenset({"999"})).read("test")) == []
    assert "Test_Set has no questions about ['999']" in caplog.text


# The second repository


def test_baseline_repository_trains(baseline: Path) -> None:
    source = MllmuSource(location=baseline)
    assert source.people() == set(fixture.PEOPLE)
    assert people_in(list(source.training("forget"))) == {"003", "012"}
    assert people_in(list(source.training("all"))) == set(fixture.PEOPLE)
    assert next(source.training("retain")).id == "retain_90/001/training-image/0"
    assert {example.task for example in source.read("forget_5")} == {"training"}
    named = MllmuSource(location=baseline, forget=frozenset({"004"}))
    assert people_in(list(named.training("forget"))) == {"004"}


def test_baseline_repository_has_no_questions(baseline: Path) -> None:
    with pytest.raises(DataError, match=r"expected column\(s\) Classification_Task.*metadata.*in MLLMMU/MLLMU-Bench;"):
        list(MllmuSource(location=baseline).read("forget"))


def test_evaluation_folders_have_no_training_text(tmp_path: Path) -> None:
    fixture.write_table(tmp_path / "forget_10", [fixture.split_row("003")], fixture.SPLIT_SCHEMA)
    fixture.write_table(tmp_path / "retain_90", [fixture.split_row("004")], fixture.SPLIT_SCHEMA)
    with pytest.raises(DataError, match=r"expected column\(s\) metadata, found.*MLLMMU/baseline_train_split"):
        list(MllmuSource(location=tmp_path).training("forget"))


def test_training_without_retained_people_is_refused(tmp_path: Path) -> None:
    root = with_row(tmp_path, {}, "ft_Data")
    fixture.write_table(root / "forget_10", [fixture.split_row("003"), fixture.split_row("012")], fixture.SPLIT_SCHEMA)
    with pytest.raises(DataError, match="nobody is left to retain"):
        MllmuSource(location=root).training("forget")
    assert list(MllmuSource(location=root, allow_no_retain=True).training("forget"))


def test_allow_no_retain_needs_no_retain_folder(tmp_path: Path) -> None:
    fixture.write_table(tmp_path / "forget_10", [fixture.training_row("003")], fixture.TRAINING_SCHEMA)
    with pytest.raises(DataError, match="expected retain_90"):
        MllmuSource(location=tmp_path).training("forget")
    assert list(MllmuSource(location=tmp_path, allow_no_retain=True).training("forget"))


def test_people_without_training_text_are_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"no training text about \['998'\]"):
        MllmuSource(location=tree, forget=frozenset({"998"})).training("forget")


# Files


def digests(root: Path, split: str) -> dict[str, str]:
    return {example.id: example.digest() for example in read(root, split)}


@pytest.mark.parametrize("split", ["forget_10", "retain_90", "Test_Set", "ft_Data", "Full_Set"])
def test_pandas_files_read_the_same(tree: Path, tmp_path: Path, split: str) -> None:
    frame = pd.concat([pd.read_parquet(path) for path in sorted((tree / split).glob("*.parquet"))], ignore_index=True)
    (tmp_path / split).mkdir()
    frame.to_parquet(tmp_path / split / "train-00000-of-00001.parquet")
    assert digests(tmp_path, split) == digests(tree, split)


def test_pandas_from_plain_records_reads_the_same(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "forget_10").mkdir()
    rows = [fixture.split_row(person) for person in fixture.FORGET[10]]
    pd.DataFrame(rows).to_parquet(tmp_path / "forget_10" / "train-00000-of-00001.parquet")
    assert digests(tmp_path, "forget_10") == digests(tree, "forget_10")


def test_rewritten_by_pyarrow_reads_the_same(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "Test_Set").mkdir()
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tree / "Test_Set").glob("*.parquet"))])
    pq.write_table(table, tmp_path / "Test_Set" / "any-name.parquet", row_group_size=1, compression="zstd")
    assert digests(tmp_path, "Test_Set") == digests(tree, "Test_Set")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for count in (24, 96):
        rows = [fixture.training_row("001") | {"ID": f"{number:03d}"} for number in range(count)]
        for number, row in enumerate(rows):
            row["image"] = {"bytes": number.to_bytes(4, "big") * 2**16, "path": None}
        folder = tmp_path / str(count)
        fixture.write_table(folder / "ft_Data", rows, fixture.TRAINING_SCHEMA, row_group_size=4)
        before, arrow = pa.total_allocated_bytes(), 0
        tracemalloc.start()
        for _ in MllmuSource(location=folder).read("ft_Data"):
            arrow = max(arrow, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
    small, large = peaks
    assert large < small * 1.5
    assert large < 12 * 2**20, "the file holds 24 MiB of pictures"


def test_people_are_read_without_their_pictures(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllmu, "_pictures", lambda row: pytest.fail("a picture was read"))
    source = MllmuSource(location=tree)
    assert source.forget_people() == {"003", "012"}
    assert source.people() == set(fixture.PEOPLE)


def test_row_groups_nobody_asked_for_stay_unread(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    original = pq.ParquetFile.iter_batches

    def recorded(self: pq.ParquetFile, *args: Any, **kwargs: Any) -> Any:
        groups.extend(kwargs["row_groups"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recorded)
    examples = list(MllmuSource(location=tree, forget=frozenset({"008"})).read("forget"))
    assert people_in(examples) == {"008"}
    assert groups == [1]


def test_rows_are_numbered_across_row_groups(tree: Path) -> None:
    example = next(MllmuSource(location=tree, forget=frozenset({"015"})).read("forget"))
    assert "row 14, person 015" in example.images[0].origin


# What downloads get wrong


def test_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "forget_10").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 34900000\n"
    (tmp_path / "forget_10" / "train-00000-of-00001.parquet").write_text(pointer)
    with pytest.raises(DataError, match=r"found a git-lfs pointer\. Run `git lfs pull`"):
        read(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 40, -20])
def test_broken_parquet(tree: Path, tmp_path: Path, keep: int) -> None:
    whole = (tree / "forget_10" / "train-00000-of-00001.parquet").read_bytes()
    (tmp_path / "forget_10").mkdir()
    (tmp_path / "forget_10" / "train-00000-of-00001.parquet").write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"expected a whole parquet file, found: .* Download it again") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_pages(tree: Path, tmp_path: Path) -> None:
    data = bytearray((tree / "forget_10" / "train-00000-of-00001.parquet").read_bytes())
    data[4:200] = bytes(196)
    (tmp_path / "forget_10").mkdir()
    (tmp_path / "forget_10" / "train-00000-of-00001.parquet").write_bytes(data)
    with pytest.raises(DataError, match="expected a whole parquet file"):
        read(tmp_path)


def test_missing_shard(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "Test_Set").mkdir()
    name = "train-00001-of-00002.parquet"
    (tmp_path / "Test_Set" / name).write_bytes((tree / "Test_Set" / name).read_bytes())
    with pytest.raises(DataError, match="Test_Set: expected 2 shards, found 1"):
        read(tmp_path, "Test_Set")


def test_missing_folder_names_what_is_there(tmp_path: Path) -> None:
    with_row(tmp_path, {})
    with pytest.raises(DataError, match=r"expected Test_Set/\*\.parquet, found forget_10\."):
        MllmuSource(location=tmp_path).read("Test_Set")
    with pytest.raises(DataError, match="found no published folder"):
        MllmuSource(location=tmp_path / "forget_10").read("forget_10")


def test_unknown_split_lists_the_known_ones(tree: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of forget, retain, test, real, Full_Set.*found 'train'"):
        MllmuSource(location=tree).read("train")


def test_missing_id_column(tmp_path: Path) -> None:
    schema = fixture.SPLIT_SCHEMA.remove(fixture.SPLIT_SCHEMA.get_field_index("ID"))
    with pytest.raises(DataError, match=r"expected column\(s\) ID, found"):
        read(with_row(tmp_path, {}, schema=schema))
    with pytest.raises(DataError, match="expected a column ID, found image, biography"):
        MllmuSource(location=tmp_path).forget_people()


def test_missing_image_column(tmp_path: Path) -> None:
    schema = fixture.SPLIT_SCHEMA.remove(fixture.SPLIT_SCHEMA.get_field_index("image"))
    with pytest.raises(DataError, match=r"expected column\(s\) image or images, found"):
        read(with_row(tmp_path, {}, schema=schema))


def test_missing_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1, ID: expected text such as '001', found None"):
        read(with_row(tmp_path, {"ID": None}))


MARKED = [{"Ground_Truth": "x", "Question": "Who is <image>?", "Type": "Pure_Text"}]
STRANGE = [{"Ground_Truth": "x", "Question": "Who?", "Type": "Video"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Mask_Task": MARKED}, "row 1, person 012, cloze-text/0 question: expected no literal <image>"),
        ({"Mask_Task": STRANGE}, r"Mask_Task\[0\].Type: expected Image_Textual or Pure_Text, found 'Video'"),
        ({"image": None}, "person 012, image: expected a picture for classification-image/0, found None"),
        (
            {"image": {"bytes": None, "path": "a.png"}},
            "picture 0: expected a record with its bytes.*'a.png'.*embedded",
        ),
        ({"image": {"bytes": b"", "path": None}}, "picture 0: expected a record with its bytes"),
    ],
)
def test_bad_cells_name_row_and_person(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(with_row(tmp_path, changes))


def test_cells_of_another_type(tmp_path: Path) -> None:
    for column, changed, message in (
        ("Mask_Task", pa.string(), "Mask_Task: expected a list of records, found 'no'"),
        ("Classification_Task", pa.string(), "Classification_Task: expected a record, found 'no'"),
        ("image", pa.string(), "picture 0: expected a record with its bytes, found 'no'"),
    ):
        rows = [fixture.split_row("003") | {column: "no"}]
        index = fixture.SPLIT_SCHEMA.get_field_index(column)
        schema = fixture.SPLIT_SCHEMA.set(index, pa.field(column, changed))
        fixture.write_table(tmp_path / "forget_10", rows, schema)
        with pytest.raises(DataError, match=message):
            read(tmp_path)


def test_options_of_another_type(tmp_path: Path) -> None:
    entry = pa.struct([("Correct_Answer", pa.string()), ("Options", pa.string()), ("Question", pa.string())])
    task = pa.struct([("Image_Textual_Questions", pa.list_(entry)), ("Pure_Text_Questions", pa.list_(entry))])
    index = fixture.SPLIT_SCHEMA.get_field_index("Classification_Task")
    schema = fixture.SPLIT_SCHEMA.set(index, pa.field("Classification_Task", task))
    value = {"Image_Textual_Questions": [{"Correct_Answer": "A", "Options": "A: x", "Question": "?"}]}
    fixture.write_table(tmp_path / "forget_10", [fixture.split_row("003") | {"Classification_Task": value}], schema)
    with pytest.raises(DataError, match="classification-image/0 Options: expected a record of letters, found 'A: x'"):
        read(tmp_path)


def test_huge_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllmu, "MAX_IMAGE_BYTES", 2000)
    with pytest.raises(DataError, match="row 1, person 012, picture 0: expected at most 2000 bytes, found 2001"):
        read(with_row(tmp_path, {"image": {"bytes": bytes(2001), "path": None}}))


def test_test_set_pictures_are_checked_one_by_one(tmp_path: Path) -> None:
    images = [fixture.image_cell(1, None), {"bytes": None, "path": "b.png"}]
    with pytest.raises(DataError, match="picture 1: expected a record with its bytes"):
        read(with_row(tmp_path, {"images": images}, "Test_Set"), "Test_Set")
    with pytest.raises(DataError, match="expected a picture for classification-image/0, found None"):
        read(with_row(tmp_path, {"images": []}, "Test_Set"), "Test_Set")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[{", r"row 1, person 012, metadata: expected a JSON list \(.*Correct the JSON"),
        ("[" * 200_000, "metadata: expected a JSON list"),
        ('{"Question": "?"}', "metadata: expected a list of records"),
        ('["?"]', "metadata: expected a list of records"),
        ('[{"Question": "a <image>?", "Answer": "b"}]', "training-image/0 question: expected no literal <image>"),
        ('[{"Question": 7, "Answer": "b"}]', "training-image/0 question: expected text, found 7"),
        (r'[{"Question": "\ud800?", "Answer": "b"}]', "training-image/0 question: expected Unicode text"),
    ],
)
def test_bad_metadata(tmp_path: Path, metadata: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(with_row(tmp_path, {"metadata": metadata}, "ft_Data"), "ft_Data")


def test_huge_metadata_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllmu, "MAX_METADATA_BYTES", 1000)
    metadata = json.dumps([{"Question": "?" * 1000, "Answer": "b"}])
    with pytest.raises(DataError, match="metadata: expected at most 1000 characters, found 10"):
        read(with_row(tmp_path, {"metadata": metadata}, "ft_Data"), "ft_Data")


def test_null_metadata_and_entries_without_text(tmp_path: Path) -> None:
    assert people_in(read(with_row(tmp_path, {"metadata": None}, "ft_Data"), "ft_Data")) == {"003"}
    both = {"Question": "q", "Answer": "a", "Additional_question": "x"}
    source = MllmuSource(location=with_row(tmp_path, {"metadata": json.dumps([{"ID": "1"}, both])}, "ft_Data"))
    assert Counter(example.people for example in source.read("ft_Data")) == {("003",): 4, ("012",): 1}
    assert source.skipped()["ft_Data"] == {
        "question or answer is blank": 1,
        "Additional_* entries are never trained on": 1,
    }
