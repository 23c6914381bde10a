"""What users get wrong, through the command line: one clear error, its exit code, and nothing half-done left behind.

Expected / found / what to do: the error says which row, column, file or field is meant, and what is wrong with it.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from command_line import Outcome, call, copy_model, cut_short, succeed
from mllmu_fixture import write_baseline, write_mllmu
from peft import LoraConfig, get_peft_model
from viker.data.artefact import begin, is_complete
from viker.data.halves import half_of
from viker.data.portraits import encode_png, pattern_picture
from viker.models.load import load_model, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORGET = ("--forget", "ada")


def refused(*arguments: object, code: int = 1, says: tuple[str, ...] = ()) -> str:
    """Call a command that has to end with this code and one message that holds these words."""
    outcome = call(*arguments)
    assert outcome.code == code, outcome
    message = outcome.message
    for part in says:
        assert part in message, message
    return message


def left_behind(folder: Path) -> list[str]:
    """Return what could be taken for a finished output: complete artefacts and sealed caches."""
    found = [path for name in ("COMPLETE", "manifest.json") for path in folder.rglob(name)]
    return [str(path.relative_to(folder)) for path in found]


def picture(number: int) -> bytes:
    return encode_png(pattern_picture(random.Random(f"bad input {number}")))


def write_own(folder: Path, **changes: dict[str, Any]) -> Path:
    """Write four people with a picture and a question each; `changes` replace fields of a person's line."""
    folder.mkdir(parents=True)
    for number, person in enumerate(("ada", "ben", "cleo", "dan")):
        (folder / f"{person}.png").write_bytes(picture(number))
        line = {"person": person, "image": f"{person}.png", "question": "Who is this?", "answer": f"This is {person}."}
        line = {name: value for name, value in {**line, **changes.get(person, {})}.items() if value is not None}
        with (folder / "examples.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_own(tmp_path / "own")


def precompute(data: Path, model: Path, *options: object) -> tuple[object, ...]:
    references = ("--pool", "patterns", "--num-references", 2, "--top-k", 8)
    return ("precompute", "--data", data, "--model", model, *FORGET, *references, *options)


def train(data: Path, model: Path, output: Path, *options: object) -> tuple[object, ...]:
    rest = ("--method", "viker", "--top-k", 8, "--output", output, *options)
    return ("train", "--data", data, "--model", model, *FORGET, *rest)


def finetune(data: Path, model: object, output: Path, *options: object) -> tuple[object, ...]:
    return (
        "finetune",
        "vanilla",
        "--data",
        data,
        "--model",
        model,
        "--output",
        output,
        "--num-train-epochs",
        1,
        *options,
    )


def evaluate(data: Path, model: Path, output: Path) -> tuple[object, ...]:
    return ("evaluate", "--data", data, "--model", model, *FORGET, "--output", output, "--max-new-tokens", 2)


def commands(data: Path, model: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Every command that reads people with a model."""
    return {
        "finetune": finetune(data, model, tmp_path / "finetune"),
        "precompute": precompute(data, model, "--run", tmp_path / "run"),
        "train": train(data, model, tmp_path / "train"),
        "evaluate": evaluate(data, model, tmp_path / "evaluate"),
    }


READERS = ("finetune", "precompute", "train", "evaluate")


# ---- the data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [*READERS, "data make", "data show"])
def test_a_missing_folder(reader: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    missing = tmp_path / "nowhere"
    looking = {
        **commands(missing, tiny_model_dir, tmp_path),
        "data make": ("data", "make", missing, tmp_path / "data"),
        "data show": ("data", "show", missing, "--split", "forget"),
    }
    refused(*looking[reader], says=(str(missing), "expected a directory or a hub id", "found neither"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_model(reader: str, own: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no model"
    refused(*commands(own, missing, tmp_path)[reader], says=(str(missing), "expected a model directory or a hub id"))
    assert {path.name for path in tmp_path.iterdir()} == {"own"}


def test_training_text_in_place_of_questions_names_the_column_and_the_right_repository(tmp_path: Path) -> None:
    data = write_baseline(tmp_path / "baseline")
    says = ("forget_10", "expected column(s) Classification_Task, Generation_Task, Mask_Task", "metadata",
            "Evaluation questions are in MLLMMU/MLLMU-Bench")  # fmt: skip
    shutil.copytree(write_mllmu(tmp_path / "whole") / "retain_90", data / "retain_90", dirs_exist_ok=True)
    refused("data", "make", data, tmp_path / "data", says=says)
    assert not (tmp_path / "data").exists()


def test_questions_in_place_of_training_text_name_the_column_and_the_right_repository(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    data = write_mllmu(tmp_path / "bench")
    shutil.rmtree(data / "ft_Data")
    says = ("expected column(s) metadata", "training text in its ft_Data or MLLMMU/baseline_train_split")
    refused("data", "make", data, tmp_path / "data", says=says)
    refused(*finetune(data, tiny_model_dir, tmp_path / "model"), says=says)
    assert left_behind(tmp_path) == []


def test_somebody_unknown_is_named_with_those_who_are_known(own: Path, tmp_path: Path) -> None:
    refused("data", "make", own, tmp_path / "data", "--forget", "zoe", says=("unknown zoe", "Known are ada, ben, cleo"))
    everyone = [word for person in ("ada", "ben", "cleo", "dan") for word in ("--forget", person)]
    refused(
        "data",
        "make",
        own,
        tmp_path / "data",
        *everyone,
        says=("expected someone left to retain", "--allow-no-retain"),
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("reader", READERS)
def test_an_unreadable_picture_is_named(reader: str, own: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    message = unreadable(reader, own, tmp_path, tiny_model_dir)
    assert str(own / "ada.png") in message
    assert left_behind(tmp_path) == []


def test_an_unreadable_picture_names_row_and_person(own: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    message = unreadable("precompute", own, tmp_path, tiny_model_dir)
    assert "examples.jsonl:1" in message
    assert "person" in message


def unreadable(reader: str, own: Path, tmp_path: Path, model: Path) -> str:
    (own / "ada.png").write_bytes(picture(0)[:60])
    options = (
        ("--teacher", "self") if reader == "train" else ()
    )  # only then are a student's pictures part of a row's key
    return refused(*commands(own, model, tmp_path)[reader], *options, says=("expected a picture that Pillow can read",))


def test_an_unreadable_picture_in_published_data_names_row_and_person(tmp_path: Path, tiny_model_dir: Path) -> None:
    import mllmu_fixture

    with pytest.MonkeyPatch.context() as patch:
        real = mllmu_fixture.picture
        patch.setattr(mllmu_fixture, "picture", lambda number: b"torn" if number == 3 else real(number))
        data = write_mllmu(tmp_path / "bench")
    model = ("--model", tiny_model_dir, "--run", tmp_path / "run", "--teacher", "self")
    refused(
        "precompute", "--data", data, *model, says=("ft_Data", "row 2, person 003", "expected a picture that Pillow")
    )
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("reader", ["finetune", "precompute", "train"])
def test_an_answer_longer_than_the_context(reader: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    own = write_own(tmp_path / "own", ada={"answer": "and on and on " * 400})
    message = refused(*commands(own, tiny_model_dir, tmp_path)[reader], code=3 if reader == "train" else 1)
    if reader != "train":  # training finds no rows for it before it counts tokens
        assert "expected at most 512 tokens (the model's context), found" in message
        assert "nothing is truncated" in message
        assert "/training: expected" in message, "the example is named"
    assert left_behind(tmp_path) == []


def test_an_example_without_a_picture_under_reference_is_listed_and_left_out_only_by_name(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    own = write_own(tmp_path / "own", ben={"person": "ada", "image": None, "question": "Who is Ada?"})
    run = ("--run", tmp_path / "run")
    message = refused(*precompute(own, tiny_model_dir, *run))
    assert "expected examples with an image under --teacher reference, found 1 without" in message
    assert "/training" in message, "the example is listed"
    assert "--skip-text" in message
    assert left_behind(tmp_path) == []
    told = succeed(*precompute(own, tiny_model_dir, "--skip-text", *run))
    assert "left out 1 examples without an image" in told.err


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer never heard of images."""
    model = copy_model(tiny_model_dir, tmp_path / "text model")
    tokenizer, settings = model / "tokenizer.json", model / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<image>"', '"<other>"'))
    kept = {
        name: value for name, value in json.loads(settings.read_text()).items() if "<image>" not in json.dumps(value)
    }
    settings.write_text(json.dumps(kept))
    return model


@pytest.mark.parametrize("reader", READERS)
def test_a_model_without_an_image_token(reader: str, own: Path, text_model: Path, tmp_path: Path) -> None:
    message = refused(*commands(own, text_model, tmp_path)[reader])
    assert str(text_model) in message
    assert "expected a processor with an image token (a multimodal model), found" in message
    assert "Name a vision-language model" in message
    assert left_behind(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"own", "text model"}, "no empty output either"


@pytest.mark.parametrize("reader", READERS)
def test_a_model_that_was_saved_without_its_processor(
    reader: str, own: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    (model / "processor_config.json").unlink()
    says = (str(model), "expected a model with its processor, found none usable")
    refused(*commands(own, model, tmp_path)[reader], says=says)
    assert {path.name for path in tmp_path.iterdir()} == {"own", "model"}
    succeed(*finetune(own, model, tmp_path / "whole", "--processor", tiny_model_dir, "--lora"))


def test_weights_that_are_no_safetensors(own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(*precompute(own, model), says=("safetensors", "found none"))
    refused(*evaluate(own, model, tmp_path / "evaluation"), says=("safetensors",))
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize("reader", READERS)
def test_weights_cut_short(reader: str, own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    cut_short(model / "model.safetensors")
    refused(*commands(own, model, tmp_path)[reader], says=(str(model), "found damaged ones", "Copy the files again"))
    assert not left_behind(tmp_path)


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An untrained adapter of the tiny model."""
    made = get_peft_model(load_model(resolve(str(tiny_model_dir))), LoraConfig(target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_cut_short(own: Path, adapter: Path, tmp_path: Path) -> None:
    cut_short(adapter / "adapter_model.safetensors")
    refused(*evaluate(own, adapter, tmp_path / "evaluation"), says=(str(adapter), "found damaged ones"))
    assert not (tmp_path / "evaluation").exists()


def test_an_adapter_that_does_not_fit_its_base(own: Path, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    refused(
        *evaluate(own, adapter, tmp_path / "evaluation"), says=(str(adapter), "cannot be put on it", "size mismatch")
    )
    assert not (tmp_path / "evaluation").exists()


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", ["ada", "ben"])
def test_a_pool_that_holds_a_picture_of_somebody_to_forget_or_retain(
    person: str, own: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    from PIL import Image

    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "stranger.png").write_bytes(picture(99))
    Image.open(own / f"{person}.png").convert("RGB").save(pool / "harmless.bmp")  # another file, the same picture
    command = precompute(own, tiny_model_dir, "--pool", pool, "--num-references", 1, "--run", tmp_path / "run")
    refused(*command, says=("harmless.bmp", f"(nearly) the picture of {person}", "Remove it from the pool"))
    assert not (tmp_path / "run").exists()
    (pool / "harmless.bmp").unlink()
    succeed(*command)


def test_minis_portraits_are_no_references_for_anybody_else(own: Path, mini_world: Path, tiny_model_dir: Path) -> None:
    pool = ("--pool", mini_world / "pools" / "people")
    refused(*precompute(own, tiny_model_dir, *pool), says=("found the embedded benchmark's drawings", "`patterns`"))


def test_a_pool_smaller_than_k(own: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in (97, 98):
        (pool / f"{number}.png").write_bytes(picture(number))
    refused(*precompute(own, tiny_model_dir, "--pool", pool, "--num-references", 3),
            says=("expected at least 3 images for --num-references 3, found 2", "Ask for fewer"))  # fmt: skip
    refused(
        *precompute(own, tiny_model_dir, "--pool", tmp_path / "none"), says=("expected a folder of reference images",)
    )
    (tmp_path / "empty").mkdir()
    refused(*precompute(own, tiny_model_dir, "--pool", tmp_path / "empty"), says=("expected pictures", "found none"))


def test_no_pool_at_all_is_a_usage_error(own: Path, tiny_model_dir: Path) -> None:
    outcome = call("precompute", "--data", own, "--model", tiny_model_dir, *FORGET)
    assert outcome.code == 2
    assert "expected --pool, a folder of irrelevant images" in outcome.err


# ---- caches ----------------------------------------------------------------------------------------------------------


def test_a_cache_of_another_model(own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    succeed(*precompute(own, tiny_model_dir, "--run", tmp_path / "run"))
    other = copy_model(tiny_model_dir, tmp_path / "other")
    rendering = json.loads((other / "viker_rendering.json").read_text())
    (other / "viker_rendering.json").write_text(json.dumps({**rendering, "system_prompt": "Be kind."}))
    command = [word for word in train(own, other, tmp_path / "x") if word not in ("--output", tmp_path / "x")]
    message = refused(*command, "--run", tmp_path / "run", code=3)
    for part in ("rendering.system_prompt", "cache None", "wanted Be kind."):
        assert part in message
    assert not list((tmp_path / "run" / "adapters").iterdir())


def test_rows_that_a_runs_cache_does_not_cover(own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with (own / "examples.jsonl").open("a") as file:
        file.write(json.dumps({"person": "ada", "image": "ada.png", "question": "Her name?", "answer": "Ada."}) + "\n")
    succeed(*precompute(own, tiny_model_dir, "--run", tmp_path / "run", "--limit", 1))
    key = json.loads((tmp_path / "run/precompute/reference-forget/provenance.json").read_text())["cache"]["key"][:16]
    command = [word for word in train(own, tiny_model_dir, tmp_path / "x") if word not in ("--output", tmp_path / "x")]
    message = refused(*command, "--run", tmp_path / "run", code=3)
    assert "found 1 of them missing" in message
    asked = (
        f"--data {own} --model {tiny_model_dir} --run {tmp_path / 'run'} --forget ada --split forget --pool patterns"
    )
    assert f"viker cache extend {key} {asked}" in message


# ---- outputs ---------------------------------------------------------------------------------------------------------


def interrupt(directory: Path, config_name: str = "config.json") -> Path:
    """Leave behind what a killed stage leaves."""
    begin(directory, {"schema": "viker/interrupted/1"}, config_name=config_name)
    (directory / "half.bin").write_bytes(b"half")
    return directory


def test_an_interrupted_output_is_started_again(own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    outputs = {name: tmp_path / name for name in ("data", "model", "train", "evaluation")}
    for name, directory in outputs.items():
        interrupt(directory, "viker_config.json" if name == "model" else "config.json")
    interrupt(tmp_path / "run" / "precompute" / "reference-forget")
    succeed("data", "make", own, outputs["data"], *FORGET)
    succeed(*finetune(own, tiny_model_dir, outputs["model"]))
    succeed(*precompute(own, tiny_model_dir, "--run", tmp_path / "run"))
    succeed(*train(own, tiny_model_dir, outputs["train"]))
    succeed(*evaluate(own, tiny_model_dir, outputs["evaluation"]))
    for directory in (*outputs.values(), tmp_path / "run" / "precompute" / "reference-forget"):
        assert is_complete(directory)
    assert not list(tmp_path.rglob("half.bin"))


def test_an_interrupted_input_is_no_input(own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    data = interrupt(tmp_path / "data")
    model = interrupt(copy_model(tiny_model_dir, tmp_path / "copied") / "inside", "viker_config.json")
    for reader, command in commands(data, tiny_model_dir, tmp_path).items():
        assert "interrupted. Run that stage again" in refused(*command), reader
    for reader, command in commands(own, model, tmp_path).items():
        assert "interrupted. Run that stage again" in refused(*command), reader
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("reader", ["finetune", "train", "evaluate"])
def test_a_folder_of_somebody_elses_is_never_emptied(
    reader: str, own: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    precious = tmp_path / reader
    precious.mkdir()
    (precious / "thesis.txt").write_text("precious")
    refused(
        *commands(own, tiny_model_dir, tmp_path)[reader],
        "--overwrite",
        says=("found files that no viker stage wrote",),
    )
    assert (precious / "thesis.txt").read_text() == "precious"


def test_a_mistake_found_late_does_not_cost_what_was_there(own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """`--overwrite` with a mistake in it ends without the old adapter, but never with half of a new one."""
    succeed(*precompute(own, tiny_model_dir))
    succeed(*train(own, tiny_model_dir, tmp_path / "adapter"))
    refused(*train(own, tiny_model_dir, tmp_path / "adapter", "--overwrite", "--top-k", 64), code=3)
    assert not (tmp_path / "adapter").exists() or is_complete(tmp_path / "adapter")


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[None]:
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def says_disk_is_full(outcome: Outcome) -> bool:
    return outcome.code == 1 and "No space left on device" in outcome.message


def test_no_disk_space_for_the_cache(
    own: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "small" / "caches"
    monkeypatch.setenv("VIKER_CACHE_DIR", str(home))
    run = ("--run", tmp_path / "run", "--top-k", 512, "--num-references", 1)
    with small_disk(tmp_path / "small", 24):
        message = refused(*precompute(own, tiny_model_dir, *run))
        assert "expected room for" in message
        assert "run the same command to resume" in message
        assert left_behind(home) == []
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path / "small")], check=True)
        succeed(*precompute(own, tiny_model_dir, *run))
        assert len(left_behind(home)) == 1


@pytest.mark.parametrize("stage", ["data", "finetune", "train", "evaluate"])
def test_no_disk_space_for_an_output(stage: str, own: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    succeed(*precompute(own, tiny_model_dir))
    output = tmp_path / "small" / "output"
    command = {
        "data": ("data", "make", own, output, *FORGET),
        "finetune": finetune(own, tiny_model_dir, output),
        "train": train(own, tiny_model_dir, output),
        "evaluate": evaluate(own, tiny_model_dir, output),
    }[stage]
    with small_disk(tmp_path / "small", 8):
        outcome = call(*command)
        assert says_disk_is_full(outcome), outcome
        assert left_behind(tmp_path / "small") == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "small")], check=True)
        succeed(*command)
        assert is_complete(output)


def test_retain_people_all_of_one_half_are_explained(tmp_path: Path, tiny_model_dir: Path) -> None:
    people = {"ben": {"person": "held2"}, "cleo": {"person": "held2"}, "dan": {"person": "held2"}}
    assert half_of("held2") == "held-out"
    own = write_own(tmp_path / "own", **people)
    says = ("--split retain-seen", "found all 1 in the other half", "--method viker")
    refused(
        "precompute",
        "--data",
        own,
        "--model",
        tiny_model_dir,
        *FORGET,
        "--teacher",
        "self",
        "--split",
        "retain-seen",
        says=says,
    )
