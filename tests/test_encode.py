"""Encoding: where an answer begins and ends in tokens, for any template, and which pictures can be read.

The golden ids (golden/encode_llava.json) change only with the template or the tokenizer's training: look at the
difference, then run `python tests/test_encode.py` to write them anew.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from viker.data.example import DataError, EncodedImage, Example, Message, ask_about
from viker.models import load as load_module
from viker.models.encode import Encoder, answer_rows, collate
from viker.models.load import load_encoder, resolve
from viker.models.pictures import decode
from viker.models.render import render_llava
from viker.models.tiny import IMAGE_SIZE, build_tiny_llava

GOLDEN = Path(__file__).parent / "golden" / "encode_llava.json"
GOLDEN_TEXTS = ["Where was this person born?", "The person was born in Lisbon and works as a baker."] * 4
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ message['role'] }}:
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""
TRAILING_SPACE = CHAT_TEMPLATE.replace("assistant:{% endif %}", "assistant: {% endif %}")
REWRITING = CHAT_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ messages | length }} turns\\n")
QUESTION, ANSWER = "Where was this person born?", "The person was born in Lisbon."


def picture(color: tuple[int, int, int] = (200, 30, 60)) -> EncodedImage:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(stream, "PNG")
    return EncodedImage(stream.getvalue(), f"picture {color}")


def asked(question: str = QUESTION, answer: str = ANSWER, image: EncodedImage | None = None) -> Example:
    image = image or picture()
    return Example(
        id="x/1", people=("x",), images=(image,), messages=ask_about(image, question), answer=answer, task="training"
    )


def conversation() -> Example:
    turns = (
        Message("system", "Answer briefly."),
        Message("user", "<image>\nWho is this?"),
        Message("assistant", "A baker."),
        Message("user", "And this <image> ?"),
    )
    images = (picture(), picture((0, 90, 0)))
    return Example(id="x/2", people=("x",), images=images, messages=turns, answer="A pilot.", task="training")


def chat_encoder(directory: Path, template: str, tmp_path: Path, **options: bool) -> Encoder:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    return load_encoder(resolve(str(directory)), chat_template=path, **options)


@pytest.fixture(scope="module")
def encoder(tiny_model_dir):
    return load_encoder(resolve(str(tiny_model_dir)))


@pytest.fixture
def chat(tiny_model_dir, tmp_path):
    return chat_encoder(tiny_model_dir, CHAT_TEMPLATE, tmp_path)


def text_of(encoder: Encoder, ids: tuple[int, ...]) -> str:
    return encoder.tokenizer.decode(ids)


def hf_ids(encoder: Encoder, text: str, example: Example, add_special_tokens: bool) -> list[int]:
    """The ids that the processor itself makes of a rendered text and the pictures."""
    pictures = [decode(image) for image in example.images]
    inputs = encoder.processor(text=text, images=pictures, add_special_tokens=add_special_tokens, return_tensors="pt")
    return inputs["input_ids"][0].tolist()


def golden_ids() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_llava(Path(folder), GOLDEN_TEXTS, seed=0, vocab_size=320)
        encoder = load_encoder(resolve(folder))
    prompt_ids, answer_ids = encoder.ids(asked())
    return {"schema": "viker/golden-encode/1", "prompt_ids": list(prompt_ids), "answer_ids": list(answer_ids)}


def test_golden_ids():
    assert golden_ids() == json.loads(GOLDEN.read_text())


def test_the_llava_template_splits_at_the_answer(encoder):
    prompt_ids, answer_ids = encoder.ids(asked())
    assert text_of(encoder, prompt_ids) == f"<s>USER: <image>\n{QUESTION}\nASSISTANT:"
    assert text_of(encoder, answer_ids) == f" {ANSWER}</s>"


def test_a_chat_template_splits_at_the_answer_and_ends_at_the_stop_id(chat):
    prompt_ids, answer_ids = chat.ids(asked())
    assert text_of(chat, prompt_ids) == f"<s>user:<image> {QUESTION}\nassistant:"
    assert text_of(chat, answer_ids) == f" {ANSWER}</s>"


def test_a_template_that_ends_in_a_space_may_lose_that_one_token(tiny_model_dir, tmp_path):
    encoder = chat_encoder(tiny_model_dir, TRAILING_SPACE, tmp_path)
    prompt_ids, answer_ids = encoder.ids(asked(answer="person in the picture."))
    assert text_of(encoder, prompt_ids).endswith("\nassistant:")
    assert text_of(encoder, answer_ids) == " person in the picture.</s>"


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(DataError, match=r"x/1: .*--chat-template"):
        chat_encoder(tiny_model_dir, REWRITING, tmp_path).ids(asked())


@pytest.mark.parametrize("closing", ["", " ", "<\\\\s> ", "\n\n"])
@pytest.mark.parametrize("score_end_token", [True, False])
def test_where_a_template_writes_no_end_token_the_answer_ends_with_its_text(
    tiny_model_dir, tmp_path, closing, score_end_token
):
    template = CHAT_TEMPLATE.replace("{{ eos_token }}", closing).replace("{{ '\\n' }}", "")
    encoder = chat_encoder(tiny_model_dir, template, tmp_path, score_end_token=score_end_token)
    prompt_ids, answer_ids = encoder.ids(asked())
    assert text_of(encoder, prompt_ids).endswith("assistant:")
    assert text_of(encoder, answer_ids) == f" {ANSWER}{'</s>' if score_end_token else ''}"


def test_a_begin_token_that_the_template_does_not_write_is_added(tiny_model_dir, tmp_path):
    with_it = chat_encoder(tiny_model_dir, CHAT_TEMPLATE, tmp_path).ids(asked())
    without = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    assert chat_encoder(tiny_model_dir, without, tmp_path).ids(asked()) == with_it


@pytest.mark.parametrize("template", ["llava", "chat"])
def test_without_an_end_token_the_answer_is_its_words(tiny_model_dir, tmp_path, template):
    if template == "chat":
        encoder = chat_encoder(tiny_model_dir, CHAT_TEMPLATE, tmp_path, score_end_token=False)
    else:
        encoder = load_encoder(resolve(str(tiny_model_dir)), score_end_token=False)
    assert text_of(encoder, encoder.ids(asked())[1]) == f" {ANSWER}"


def test_a_system_prompt_goes_first_unless_the_example_has_one(tiny_model_dir):
    encoder = load_encoder(resolve(str(tiny_model_dir)), system_prompt="Be kind.")
    assert text_of(encoder, encoder.ids(asked())[0]).startswith("<s>Be kind. USER: <image>")
    assert text_of(encoder, encoder.ids(conversation())[0]).startswith("<s>Answer briefly. USER: <image>")


def test_earlier_turns_are_part_of_the_prompt(encoder):
    prompt_ids, answer_ids = encoder.ids(conversation())
    assert text_of(encoder, prompt_ids) == (
        "<s>Answer briefly. USER: <image>\nWho is this?\nASSISTANT: A baker.</s>USER: And this <image> ?\nASSISTANT:"
    )
    assert text_of(encoder, answer_ids) == " A pilot.</s>"


def test_earlier_turns_are_part_of_a_chat_prompt(chat):
    prompt_ids, answer_ids = chat.ids(conversation())
    assert text_of(chat, prompt_ids).count("</s>") == 1
    assert text_of(chat, answer_ids) == " A pilot.</s>"


@pytest.mark.parametrize("make", [asked, conversation])
def test_expanded_ids_are_those_of_the_processor(encoder, make):
    example = make()
    end = encoder.tokenizer.eos_token
    text = render_llava(example.messages, example.answer, image_token="<image>", end_token=end)
    assert list(encoder.encode(example).input_ids) == hf_ids(encoder, text, example, add_special_tokens=True)


def test_expanded_chat_ids_are_those_of_the_processor(chat):
    example = conversation()
    encoded = chat.encode(example)
    text = text_of(chat, (*encoded.prompt_ids, *encoded.answer_ids))
    assert list(encoded.input_ids) == hf_ids(chat, text, example, add_special_tokens=False)


def test_pixels_are_those_of_the_processor(encoder):
    example = asked()
    expected = encoder.processor.image_processor(decode(example.images[0]), return_tensors="pt")["pixel_values"]
    assert torch.equal(encoder.encode(example).pictures[0].tensors["pixel_values"], expected)


def test_the_teacher_reads_the_same_ids_as_the_student(encoder):
    example, other = asked(), picture((1, 2, 3))
    student, teacher = encoder.encode(example), encoder.encode(example, (other,))
    assert (student.prompt_ids, student.answer_ids) == (teacher.prompt_ids, teacher.answer_ids)
    assert student.input_ids == teacher.input_ids
    assert not torch.equal(student.pictures[0].tensors["pixel_values"], teacher.pictures[0].tensors["pixel_values"])


def test_a_prompt_alone_is_what_stands_before_the_answer(encoder):
    prompt, whole = encoder.encode_prompt(asked()), encoder.encode(asked())
    assert prompt.answer_ids == ()
    assert prompt.input_ids == whole.input_ids[: whole.num_prompt]


def test_unexpanded_prompts_hold_one_placeholder_an_image(encoder):
    encoded = encoder.encode(conversation())
    assert encoded.prompt_ids.count(encoder.image_id) == 2
    assert encoded.input_ids.count(encoder.image_id) == 2 * (IMAGE_SIZE // 14) ** 2
    assert encoder.image_id not in encoded.answer_ids


def test_the_row_of_an_answer_token_is_one_position_before_it(encoder):
    rows = [encoder.encode(asked()), encoder.encode(conversation())]
    batch_M, position_M, ids_M = answer_rows(rows)
    input_ids_BT = collate(rows, pad_id=encoder.pad_id, side="right")["input_ids"]
    assert input_ids_BT[batch_M, position_M + 1].tolist() == ids_M.tolist()
    assert ids_M.tolist() == [token for row in rows for token in row.answer_ids]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_masked_on_the_side_asked_for(encoder, side):
    rows = [encoder.encode(asked()), encoder.encode(conversation())]
    batch = collate(rows, pad_id=encoder.pad_id, side=side)
    for row, ids_T, mask_T in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids_T[mask_T.bool()].tolist() == list(row.input_ids)
        assert bool(mask_T[0 if side == "right" else -1])
    assert batch["pixel_values"].shape[0] == 3


def test_a_literal_image_marker_in_the_question_is_refused():
    with pytest.raises(DataError, match="x/1: expected one <image> marker"):
        asked(question="What does <image> mean?")


def test_a_literal_image_token_in_the_answer_is_refused(encoder):
    with pytest.raises(DataError, match="x/1: expected no image token in the answer"):
        encoder.ids(asked(answer="It is an <image> of a baker."))


def test_an_end_token_inside_the_answer_is_refused(encoder):
    with pytest.raises(DataError, match=r"x/1: expected no end token inside the answer, found '</s>'"):
        encoder.ids(asked(answer="A baker.</s> And a pilot."))


@pytest.mark.parametrize("answer", ["", "  ", "\n"])
def test_a_blank_answer_is_refused(encoder, answer):
    with pytest.raises(DataError, match="x/1: expected an answer of at least one token"):
        encoder.ids(asked(answer=answer))


def test_what_is_too_long_is_refused_not_truncated(encoder):
    with pytest.raises(DataError, match=r"x/1: expected at most 512 tokens .*nothing is truncated"):
        encoder.encode(asked(answer="born in Lisbon " * 300))


def test_swapping_in_another_number_of_images_is_refused(encoder):
    with pytest.raises(DataError, match=r"x/1: expected 2 image token\(s\) in the rendered prompt, found 1"):
        encoder.encode(asked(), (picture(), picture()))


def test_a_processor_without_image_token_is_refused(encoder):
    class TextOnly:
        tokenizer = encoder.tokenizer
        image_token = None

    with pytest.raises(DataError, match="expected a processor with an image token"):
        Encoder(TextOnly(), encoder.rendering, context_length=9, vocab_size=9, where=Path("model"))


def test_a_processor_whose_packages_are_missing_is_one_message(tiny_model_dir, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found.\n")

    monkeypatch.setattr(load_module.AutoProcessor, "from_pretrained", fail)
    with pytest.raises(DataError, match=r"requires the Torchvision library .*pip install viker\[families\]"):
        load_encoder(resolve(str(tiny_model_dir)))


def test_equal_pictures_are_read_once(encoder):
    assert encoder.picture(picture()) is encoder.picture(dataclasses.replace(picture(), origin="elsewhere"))


def stored(mode: str) -> EncodedImage:
    """A picture of a mode, in a file format that keeps it: left half dark (0), right half bright (full scale)."""
    full = {"I;16": 65535, "I": 65535, "F": 1.0}
    values = np.zeros((8, 8), np.float64)
    values[:, 4:] = full.get(mode, 255)
    if mode in full:
        source = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        source = Image.fromarray(values.astype(np.uint8)).convert(mode)
    assert source.mode == mode
    options = {"transparency": source.getpixel((0, 0))} if mode == "P" else {}
    stream = io.BytesIO()
    source.save(stream, "TIFF" if mode in ("CMYK", "I", "F", "LA") else "PNG", **options)
    return EncodedImage(stream.getvalue(), f"a picture of mode {mode}")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_every_mode_decode_to_rgb(mode):
    decoded = decode(stored(mode))
    assert (decoded.mode, decoded.size) == ("RGB", (8, 8))
    assert decoded.getpixel((7, 0)) == (255, 255, 255)
    transparent_is_white = mode == "P"
    assert decoded.getpixel((0, 0)) == ((255,) * 3 if transparent_is_white else (0,) * 3)


def test_transparent_pixels_are_white_whatever_color_they_hide():
    stream = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(stream, "PNG")
    assert decode(EncodedImage(stream.getvalue(), "x")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"no picture", stored("RGB").data[:50]], ids=["empty", "text", "torn"])
def test_bytes_that_are_no_picture_are_an_error_that_names_their_origin(data):
    with pytest.raises(DataError, match="row 7 of person x: expected a picture that Pillow can read"):
        decode(EncodedImage(data, "row 7 of person x"))


def test_too_many_pixels_are_refused_before_they_are_decoded():
    header = struct.pack(">IIBBBBB", 8200, 8200, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="row 7: expected at most 67108864 pixels, found 8200 x 8200"):
        decode(EncodedImage(data, "row 7"))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_ids()) + "\n")
