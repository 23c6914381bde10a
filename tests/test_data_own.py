"""Own people: lines and conversations, pictures that must stay inside the folder, and errors with file and line."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import mllmu_fixture as fixture
import pytest
from viker.data import own
from viker.data.example import DataError, Example, Message
from viker.data.own import OwnSource

ANA: dict[str, Any] = {"person": "ana", "image": "ana/1.png", "question": "Who?", "answer": "Ana."}
BEN: dict[str, Any] = {"person": "ben", "image": "ben.jpg", "question": "Who is it?", "answer": "Ben."}
TALK = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "<image>\nWho?"},
    {"from": "gpt", "value": "Ana."},
    {"from": "human", "value": "Where does she live?"},
    {"from": "gpt", "value": "In Graz."},
]
CHAT: dict[str, Any] = {"person": "ana", "image": "ana/1.png", "conversations": TALK}


def with_pictures(folder: Path) -> Path:
    (folder / "ana").mkdir(parents=True)
    (folder / "ana" / "1.png").write_bytes(fixture.picture(3))
    (folder / "ben.jpg").write_bytes(fixture.picture(1))
    return folder


def with_lines(folder: Path, *entries: dict[str, Any] | str) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (with_pictures(folder) / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def with_chats(folder: Path, *entries: Any, name: str = "chats.json") -> Path:
    (with_pictures(folder) / name).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return folder


def everything(folder: Path) -> list[Example]:
    return list(OwnSource(location=folder).training("all"))


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in pairs]


# Lines


def test_a_line_becomes_an_example(tmp_path: Path) -> None:
    first, second = everything(with_lines(tmp_path / "own", ANA, "", BEN))
    assert first.id == "examples/ana/1/training"
    assert (first.people, first.task, first.answer) == (("ana",), "training", "Ana.")
    assert first.messages == (Message("user", "<image>\nWho?"),)
    assert first.images[0].data == fixture.picture(3)
    assert second.id == "examples/ben/3/training", "blank lines count"


def test_several_images_or_none(tmp_path: Path) -> None:
    both = ANA | {"image": None, "images": ["ana/1.png", "ben.jpg"]}
    inline = both | {"question": "Is <image> older than <image>?"}
    text = {"person": "ana", "question": "Who?", "answer": "Ana."}
    first, second, third = everything(with_lines(tmp_path / "own", both, inline, text))
    assert first.messages[0].content == "<image>\n<image>\nWho?"
    assert second.messages[0].content == "Is <image> older than <image>?"
    assert len(second.images) == 2
    assert (third.images, third.messages[0].content) == ((), "Who?")


def test_splits(tmp_path: Path) -> None:
    lines = [ANA, ANA | {"question": "Held out?", "split": "test"}, BEN, BEN | {"split": "test"}]
    folder = with_lines(tmp_path / "own", *lines)
    source = OwnSource(location=folder, forget=frozenset({"ana"}))
    names = {split: [example.id for example in source.read(split)] for split in source.splits()}
    assert names == {
        "all": [f"examples/{name}/generation" for name in ("ana/1", "ana/2", "ben/3", "ben/4")],
        "forget": ["examples/ana/1/generation"],
        "retain": ["examples/ben/3/generation"],
        "test": ["examples/ana/2/generation"],
        "real": [],
    }
    assert source.skipped() == {"retain": {"test line about a person to retain": 1}}
    trained = {part: [example.people[0] for example in source.training(part)] for part in ("all", "forget", "retain")}
    assert trained == {"all": ["ana", "ben"], "forget": ["ana"], "retain": ["ben"]}


def test_nobody_named(tmp_path: Path) -> None:
    source = OwnSource(location=with_lines(tmp_path / "own", ANA))
    assert source.forget_people() == frozenset()
    assert source.people() == {"ana"}
    assert source.splits() == ("all", "real")
    with pytest.raises(DataError, match=r"nobody is named to be forgotten\. Name people with --forget ID"):
        source.read("forget")
    with pytest.raises(DataError, match="expected all, forget, retain, test or real, found 'ft_Data'"):
        source.read("ft_Data")


def test_a_name_in_two_normal_forms_is_one_person(tmp_path: Path) -> None:
    folder = with_lines(tmp_path / "own", ANA | {"person": "Zoe\u0308"}, ANA | {"person": " Zo\u00eb "})
    assert OwnSource(location=folder).people() == {"Zo\u00eb"}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    folder = with_pictures(tmp_path / "own")
    lines = "\ufeff" + json.dumps(ANA) + "\r\n" + json.dumps(BEN) + "\r\n"
    (folder / "examples.jsonl").write_bytes(lines.encode())
    assert [example.people[0] for example in everything(folder)] == ["ana", "ben"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"examples.jsonl:2: expected one JSON object a line"),
        ("[1]", r"examples.jsonl:2: expected a JSON object, found"),
        ("[" * 100_000, r"examples.jsonl:2: expected one JSON object a line"),
        ('{"person": "\\ud800", "question": "q", "answer": "a"}', r":2, person: expected Unicode text"),
        (ANA | {"spilt": "test"}, r":2: expected the fields answer, id, .*found \['spilt'\]"),
        (ANA | {"split": "dev"}, r":2, split: expected 'test', 'train' or nothing, found 'dev'"),
        (ANA | {"person": None}, r":2, person: expected text, found None"),
        (ANA | {"person": 7}, r":2, person: expected text, found 7"),
        (ANA | {"person": "  "}, r":2, person: expected text"),
        (ANA | {"question": ""}, r":2, question: expected text, found ''"),
        (ANA | {"answer": 3}, r":2, answer: expected text, found 3"),
        (ANA | {"answer": "an <image>"}, r":2, answer: expected no <image>"),
        (ANA | {"question": "<image> and <image>"}, r":2, question: expected no <image>, or one for each image \(1\)"),
        (ANA | {"images": ["ana/1.png"]}, r":2, images: expected image or images, not both"),
        (ANA | {"image": 3}, r":2, image: expected a relative path, or a list of them, found 3"),
        (ANA | {"image": ""}, r":2, image: expected a relative path"),
        (ANA | {"image": 0}, r":2, image: expected a relative path"),
    ],
)
def test_bad_lines_name_file_line_and_field(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        everything(with_lines(tmp_path / "own", BEN, line))


def test_lines_that_are_not_utf8(tmp_path: Path) -> None:
    folder = with_pictures(tmp_path / "own")
    (folder / "examples.jsonl").write_bytes(b'{"person": "\xff"}\n')
    with pytest.raises(DataError, match=r"examples.jsonl:1: expected one JSON object a line"):
        everything(folder)


def test_long_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_LINE_BYTES", 200)
    with pytest.raises(DataError, match=r":2: expected a line of at most 200 bytes"):
        everything(with_lines(tmp_path / "own", ANA, ANA | {"answer": "a" * 300}))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    folder = with_lines(tmp_path / "own", *[ANA | {"question": f"{n} {'?' * 500}"} for n in range(2000)])
    tracemalloc.start()
    assert sum(1 for _ in OwnSource(location=folder).read("all")) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (folder / "examples.jsonl").stat().st_size / 5


# Pictures


@pytest.mark.parametrize("path", ["/etc/hostname", "../own/ben.jpg", "ana/../../x.png", "C:\\x.png", "..\\x.png"])
def test_paths_must_be_relative_and_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"examples.jsonl:1, image: expected a relative path inside"):
        everything(with_lines(tmp_path / "own", ANA | {"image": path}))


def test_null_character_in_a_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image: expected a relative path inside"):
        everything(with_lines(tmp_path / "own", ANA | {"image": "a\0.png"}))


def test_links_must_stay_inside(tmp_path: Path) -> None:
    folder = with_lines(tmp_path / "own", ANA | {"image": "link.png"})
    (folder / "link.png").symlink_to(folder / "ben.jpg")
    assert everything(folder)[0].images[0].data == fixture.picture(1)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r":1, image: expected a file inside .*, found a link to .*secret"):
        everything(folder)


def test_linked_folders_must_stay_inside(tmp_path: Path) -> None:
    folder = with_lines(tmp_path / "own", ANA | {"image": "up/secret"})
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match="found a link to"):
        everything(folder)


def test_a_linked_root_is_no_escape(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(with_lines(tmp_path / "own", ANA))
    assert everything(tmp_path / "link")[0].images[0].data == fixture.picture(3)


def test_missing_empty_and_odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_lines(tmp_path / "own", ANA | {"image": "x.png"})
    with pytest.raises(DataError, match=r":1, image: expected the file x.png in .*, found none"):
        everything(folder)
    (folder / "x.png").touch()
    with pytest.raises(DataError, match="empty or a git-lfs pointer"):
        everything(folder)
    (folder / "x.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="git lfs pull"):
        everything(folder)
    (folder / "x.png").unlink()
    os.mkfifo(folder / "x.png")
    with pytest.raises(DataError, match="which is no file"):
        everything(folder)
    (folder / "x.png").unlink()
    (folder / "x.png").symlink_to("x.png")
    with pytest.raises(DataError, match="found none"):
        everything(folder)
    monkeypatch.setattr(own, "MAX_IMAGE_BYTES", 10)
    (folder / "x.png").unlink()
    (folder / "x.png").write_bytes(bytes(11))
    with pytest.raises(DataError, match="expected at most 10 bytes, found 11"):
        everything(folder)


def test_neighbouring_questions_share_one_picture(tmp_path: Path) -> None:
    first, second = everything(with_lines(tmp_path / "own", ANA, ANA | {"question": "And now?"}))
    assert first.images[0] is second.images[0]


# Conversations


def test_every_gpt_turn_becomes_an_example(tmp_path: Path) -> None:
    first, second = everything(with_chats(tmp_path / "own", CHAT))
    assert first.id == "chats/ana/0.2/training"
    assert first.messages == (Message("system", "Be brief."), Message("user", "<image>\nWho?"))
    assert first.answer == "Ana."
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "user"]
    assert (second.answer, len(second.images)) == ("In Graz.", 1)


def test_missing_marker_goes_before_the_first_question(tmp_path: Path) -> None:
    talk = turns(("human", "Who?"), ("gpt", "Ana."), ("human", "Sure?"), ("gpt", "Yes."))
    _, second = everything(with_chats(tmp_path / "own", CHAT | {"conversations": talk}))
    assert [message.content for message in second.messages] == ["<image>\nWho?", "Ana.", "Sure?"]


def test_markers_stay_where_they_are(tmp_path: Path) -> None:
    talk = turns(("human", "Who is <image>?"), ("gpt", "Ana."), ("human", "And <image>?"), ("gpt", "Ben."))
    entry = {"person": "ana", "image": ["ana/1.png", "ben.jpg"], "conversations": talk}
    first, second = everything(with_chats(tmp_path / "own", entry))
    assert [image.data for image in first.images] == [fixture.picture(3)]
    assert [image.data for image in second.images] == [fixture.picture(3), fixture.picture(1)]
    assert second.messages[2].content == "And <image>?"


def test_text_only_conversation_and_test_split(tmp_path: Path) -> None:
    entry = {"person": "ana", "split": "test", "conversations": turns(("human", "Who?"), ("gpt", "Ana."))}
    folder = with_chats(tmp_path / "own", entry, CHAT)
    source = OwnSource(location=folder, forget=frozenset({"ana"}))
    assert [(example.modality, example.answer) for example in source.read("test")] == [("text", "Ana.")]
    assert len(list(source.training("forget"))) == 2


def test_several_files_and_files_that_are_not_data(tmp_path: Path) -> None:
    folder = with_chats(tmp_path / "own", CHAT)
    (folder / "more.json").write_text(json.dumps([CHAT | {"person": "ben"}]))
    (folder / "sidecar.json").write_text("{}")
    assert [example.id for example in everything(folder)][::2] == ["chats/ana/0.2/training", "more/ben/0.2/training"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"person": None}, r"person: expected text, found None"),
        ({"conversations": None}, r"conversations: expected a list of turns, found None"),
        ({"conversations": []}, r"conversations: expected a list of turns"),
        ({"conversations": ["hi"]}, r"conversations\[0\].from: expected human or system, found None"),
        ({"conversations": turns(("gpt", "a"))}, r"conversations\[0\].from: expected human or system, found 'gpt'"),
        ({"conversations": turns(("user", "a"))}, r"conversations\[0\].from: expected human or system, found 'user'"),
        ({"conversations": turns(("human", "a"), ("human", "b"))}, r"conversations\[1\].from: expected gpt, found"),
        ({"conversations": turns(("human", "a"))}, r"conversations: expected a gpt turn at the end, found 'a'"),
        ({"conversations": turns(("human", 1), ("gpt", "b"))}, r"conversations\[0\].value: expected text, found 1"),
        (
            {"conversations": turns(("human", "a"), ("gpt", "<image>"))},
            r"conversations\[1\].value: expected no <image>",
        ),
        (
            {"conversations": turns(("human", "<image><image>"), ("gpt", "b"))},
            r"conversations: expected no <image>, or one for each image \(1\), found 2",
        ),
    ],
)
def test_bad_conversations_name_file_line_and_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = with_chats(tmp_path / "own", CHAT, CHAT | changes)
    line = next(
        number
        for number, text in enumerate((folder / "chats.json").read_text().splitlines(), start=1)
        if text == " {" and number > 2
    )
    with pytest.raises(DataError, match=rf"chats.json:{line}, {message}"):
        everything(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', r"chats.json:1: expected a JSON list of conversations"),
        ("", r"chats.json:1: expected a JSON list of conversations"),
        ("[3]", r"chats.json:1, entry: expected a JSON object with conversations, found 3"),
        ('[{"a": }]', r"chats.json: expected JSON in UTF-8"),
        ("[", r"chats.json: expected JSON in UTF-8"),
        ("[" * 100_000, r"chats.json: expected JSON in UTF-8"),
    ],
)
def test_files_that_are_no_conversations(tmp_path: Path, text: str, message: str) -> None:
    folder = with_pictures(tmp_path / "own")
    (folder / "chats.json").write_text(text)
    with pytest.raises(DataError, match=message):
        everything(folder)


@pytest.mark.parametrize("after", [" 7]", ",]", ""])
def test_entries_end_with_a_comma_or_the_list(tmp_path: Path, after: str) -> None:
    folder = with_pictures(tmp_path / "own")
    (folder / "chats.json").write_text("[\n" + json.dumps(CHAT) + after)
    with pytest.raises(DataError, match=r"chats.json:2: expected a comma or \] after this entry"):
        everything(folder)


def test_text_after_the_list_is_refused(tmp_path: Path) -> None:
    folder = with_pictures(tmp_path / "own")
    (folder / "chats.json").write_text(json.dumps([CHAT]) + json.dumps([CHAT]))
    with pytest.raises(DataError, match=r"chats.json:1: expected the end of the file"):
        everything(folder)


def test_conversations_that_are_not_utf8_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_pictures(tmp_path / "own")
    (folder / "chats.json").write_bytes(b"[\xff]")
    with pytest.raises(DataError, match="expected JSON in UTF-8"):
        everything(folder)
    monkeypatch.setattr(own, "MAX_CONVERSATIONS_BYTES", 2)
    with pytest.raises(DataError, match=r"expected at most 2 bytes, found 3. Split it, or write examples.jsonl"):
        everything(folder)
