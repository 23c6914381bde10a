"""`viker ask`: one question, about a picture or none, to a model or an adapter, as its own rendering asks it.

The quickest look at what a model still says. Nothing is added to the question (no instruction, no few-shot block), and
decoding is greedy like everywhere else, so the same question gets the same reply. Numbers are `viker evaluate`'s work.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.artefact import read_json
from ..data.example import IMAGE_MARKER, DataError, EncodedImage, Example, Message
from ..data.options import config_option, model_options

if TYPE_CHECKING:
    from ..models.load import Checkpoint

SCHEMA = "viker/reply/1"


@click.command()
@click.argument("question")
@model_options
@click.option("--adapter", type=click.Path(path_type=Path), help="A PEFT directory; without --model, on its own base.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="A picture (repeatable).")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Longest reply.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def command(question: str, adapter: Path | None, images: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Ask a model one question about a picture."""
    if options["model"] is None and adapter is None:
        raise click.UsageError("ask: expected --model DIR|ID or --adapter DIR, found neither.")
    example = one_question(question, images)
    from ..models.load import load, pick_device
    from .generate import generate_replies

    checkpoint = find_checkpoint(options, adapter)
    loaded = load(
        checkpoint, dtype=options["dtype"], device=pick_device(options["device"]), attention=options["attention"],
        trust_remote_code=options["trust_remote_code"], chat_template=options["chat_template"],
        system_prompt=options["system_prompt"], score_end_token=options["score_end_token"],
    )  # fmt: skip
    [reply] = generate_replies(
        loaded.model, loaded.encoder, [example], max_new_tokens=options["max_new_tokens"], batch_size=1
    )
    if not as_json:
        click.echo(reply)
        return
    told = {
        "schema": SCHEMA, "model": str(checkpoint.weights), "adapter": adapter and str(adapter),
        "images": [image.sha256 for image in example.images], "question": question, "reply": reply,
    }  # fmt: skip
    click.echo(json.dumps(told, indent=2, ensure_ascii=False))


def one_question(question: str, images: tuple[Path, ...]) -> Example:
    """Return the question as an example, its pictures in front of it.

    Raises:
        DataError: a picture cannot be read, or the question is empty.
    """
    if not question.strip():
        raise DataError("ask: expected a question, found an empty text. Write one in quotes.")
    shown = []
    for path in images:
        try:
            shown.append(EncodedImage(path.read_bytes(), str(path)))
        except OSError as error:
            raise DataError(
                f"--image {path}: expected a picture, found none ({error.strerror}). Check the path."
            ) from error
    content = f"{IMAGE_MARKER}\n" * len(shown) + question
    return Example(
        id="ask", people=(), images=tuple(shown), messages=(Message("user", content),), answer="", task="generation"
    )


def find_checkpoint(options: dict[str, Any], adapter: Path | None) -> "Checkpoint":
    """Return the model, or the adapter on its own base; with --model as well, on that base."""
    from ..models.load import Checkpoint, resolve

    if adapter is None or options["model"] is None:
        return resolve(str(adapter or options["model"]), revision=options["revision"], processor=options["processor"])
    if not (adapter / "adapter_config.json").is_file():
        raise DataError(f"--adapter {adapter}: expected a PEFT directory with adapter_config.json, found none.")
    base = resolve(options["model"], revision=options["revision"], processor=options["processor"])
    trained_on = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path"))
    if Path(trained_on).resolve() != base.weights.resolve():
        click.echo(f"ask: Note: {adapter} was trained on {trained_on}, and is asked on {base.weights}.", err=True)
    return Checkpoint(str(adapter), base.weights, base.processor, adapter=adapter, commit=base.commit)
