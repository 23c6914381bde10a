r"""Render messages and an answer to the text a model was trained on.

Two renderings cover the field: `llava` is the template the papers train and ask LLaVA-1.5 with
(`USER: <image>\n{question}\nASSISTANT: {answer}`, MLLMU-Bench data_process/data_preprocess.py), `chat` is the
processor's own chat template or a given one. A rendering is part of a teacher cache's identity, so it is a value that
can be written beside a checkpoint and compared, never a setting that two commands have to repeat.
Tokenizing, and finding the answer in the tokens, is `encode.py`'s job.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.artefact import read_json
from ..data.example import IMAGE_MARKER, DataError, Message

RENDERING_FILE = "viker_rendering.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """How messages become text; `score_end_token` tells whether the model was trained to end its answers."""

    template: Literal["llava", "chat"]
    chat_template: str | None = None
    system_prompt: str | None = None
    score_end_token: bool = True

    def identity(self) -> dict[str, Any]:
        """Return what a fingerprint records of a rendering."""
        content = asdict(self)
        if self.chat_template is not None:
            content["chat_template"] = hashlib.sha256(self.chat_template.encode()).hexdigest()
        return content


def choose_rendering(
    directory: Path,
    *,
    model_type: str,
    own_chat_template: str | None,
    chat_template: Path | None = None,
    system_prompt: str | None = None,
    score_end_token: bool | None = None,
) -> Rendering:
    """Return the rendering asked for, else the one stored beside the checkpoint, else the family's.

    LLaVA-1.5 checkpoints get the papers' template; others their processor's chat template.

    Raises:
        DataError: the model has no chat template and none is given.
    """
    stored = read_rendering(directory)
    if chat_template is not None:
        base = Rendering(template="chat", chat_template=chat_template.read_text(encoding="utf-8"))
    elif stored is not None:
        base = stored
    elif model_type == "llava":
        base = Rendering(template="llava")
    elif own_chat_template is not None:
        base = Rendering(template="chat", chat_template=own_chat_template)
    else:
        raise DataError(
            f"{directory}: expected a processor with a chat template, found none for model type {model_type!r}. "
            "Give one with --chat-template FILE."
        )
    return Rendering(
        template=base.template,
        chat_template=base.chat_template,
        system_prompt=system_prompt if system_prompt is not None else base.system_prompt,
        score_end_token=score_end_token if score_end_token is not None else base.score_end_token,
    )


def read_rendering(directory: Path) -> Rendering | None:
    """Return the rendering stored beside a checkpoint, if there is one."""
    path = directory / RENDERING_FILE
    if not path.is_file():
        return None
    content = {name: value for name, value in read_json(path).items() if name != "schema"}
    try:
        return Rendering(**content)
    except TypeError as error:
        raise DataError(f"{path}: expected the fields of a rendering, found {sorted(content)} ({error}).") from error


def write_rendering(directory: Path, rendering: Rendering) -> None:
    """Store a rendering beside a checkpoint."""
    content = {"schema": "viker/rendering/1", **asdict(rendering)}
    (directory / RENDERING_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def render_llava(messages: Sequence[Message], answer: str | None, *, image_token: str, end_token: str) -> str:
    """Render in the papers' LLaVA template; without an answer the text ends where the answer begins."""
    text = ""
    for message in messages:
        content = message.content.replace(IMAGE_MARKER, image_token)
        if message.role == "system":
            text += f"{content} "
        elif message.role == "user":
            text += f"USER: {content}\nASSISTANT:"
        else:
            text += f" {content}{end_token}"
    return text if answer is None else f"{text} {answer}{end_token}"


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in the form chat templates read, images as parts at their markers' places."""
    return [{"role": message.role, "content": _parts(message.content)} for message in messages]


def _parts(content: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for index, text in enumerate(content.split(IMAGE_MARKER)):
        if index:
            parts.append({"type": "image"})
        if text.strip("\n"):
            parts.append({"type": "text", "text": text.strip("\n")})
    return parts
