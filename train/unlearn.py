"""Train one adapter: prepare the run, take its steps, write the adapter, its log and its trajectory.

What `viker train` does once it has decided to run. Of several processes each takes its share of every step, and the
main one measures and writes. Measuring in the middle of training is evaluation's business and arrives as a function.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed

from ..data.example import DataError
from ..models.load import resolve
from .batches import summary_of
from .caches import overridden_fields
from .diagnose import Diagnosis
from .diagnose_summary import When
from .fit import TYPICAL_TOKENS, OutOfMemory, Setting, advice, is_out_of_memory, sizes_of
from .guards import Ended, Guards, best_step
from .interrupt import Interrupt, Interrupted
from .journal import Journal
from .loop import NonFiniteLoss, Unlearning
from .method import Method
from .open_student import compute_dtype, save_adapter
from .prepare import Announce, Prepared, prepare
from .processes import (
    ProcessLost,
    agreed,
    is_lost,
    is_sharded,
    on_main,
    open_accelerator,
    require_known_sharing,
    together,
    whole,
)
from .resume import Saver, find_held, made_from
from .step_log import StepLog
from .trackers import FOLDER, PROJECT, reported_options
from .trajectory import Trajectory

MOST_COUNTED = 64  # examples whose tokens are counted for an error's advice


def unlearn_method(
    options: Mapping[str, Any], method: Method, output: Path, *, make_measure: Callable[..., Any],
    fetch: Callable[[str, str, Announce], bool], announce: Announce,
) -> dict[str, Any]:  # fmt: skip
    """Train an adapter into `output` and return what provenance records.

    Raises:
        Interrupted: a signal came, and the run is saved.
        NonFiniteLoss: with the step, its examples, and where the weights before it are.
        OutOfMemory: with the options that fit common cards.
        ProcessLost: another process failed, and says why.
    """
    set_seed(options["seed"])
    accelerator = _open(options, output)
    tell = announce if accelerator.is_main_process else _say_nothing
    prepared: Prepared | None = None
    try:
        with together(accelerator):
            _require_possible(options, accelerator)
            prepared = prepare(options, method, device=str(accelerator.device), fetch=fetch, announce=tell)
            if options["report_to"] != "none":
                accelerator.init_trackers(PROJECT, config=reported_options(options))
        return _train(prepared, accelerator, output, make_measure, tell)
    except (RuntimeError, MemoryError) as error:
        if is_lost(error):
            raise ProcessLost(f"another process ended ({error})") from error
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(options, prepared, error) from error


def _open(options: Mapping[str, Any], output: Path) -> Accelerator:
    project = ProjectConfiguration(project_dir=str(output), logging_dir=str(output / FOLDER))
    reports_to = None if options["report_to"] == "none" else options["report_to"]
    return open_accelerator(options["device"], log_with=reports_to, project_config=project)


def _say_nothing(_text: str) -> None:
    """Leave it to the main process."""


def _require_possible(options: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Raise `DataError` where something would run the model on one process, and several share its weights."""
    require_known_sharing(accelerator)
    if not is_sharded(accelerator):
        return
    for name, off in (("evaluate_every", 0), ("teacher_from", "cache"), ("diagnose", False)):
        if options[name] != off:
            raise DataError(
                f"--{name.replace('_', '-')} {options[name]}: expected every process to hold the weights, found them "
                "shared (FSDP). Leave the option out, or train without FSDP."
            )


def _train(
    prepared: Prepared, accelerator: Accelerator, output: Path, make_measure: Callable[..., Any], announce: Announce
) -> dict[str, Any]:
    """Take the steps that are left, write the adapter, and return what provenance records."""
    options, method, encoder = prepared.options, prepared.method, prepared.loaded.encoder
    source = made_from(prepared.reader, [*prepared.forget, *prepared.retain], accelerator.num_processes)
    held = on_main(accelerator, lambda: find_held(output, source, announce))
    mask = None
    if method.masked:
        mask = on_main(accelerator, prepared.mask) if held is None else held.state.mask
    interrupt = Interrupt(accelerator.num_processes)
    run = Unlearning(
        prepared.model, encoder, prepared.forget, prepared.retain, method, prepared.optimization,
        key_entropy=options["key_entropy"], stop_at_teacher=options["stop"], accelerator=accelerator,
        top_k=options["top_k"], rows_of=prepared.rows_of, mask=mask, is_asked_to_stop=lambda: interrupt.is_asked,
    )  # fmt: skip
    if held is not None:
        run.take_up(held.state)
    measure = None
    if options["evaluate_every"] and accelerator.is_main_process:
        measure = make_measure(options["data"], options["ratio"], options["forget"], options["evaluate_people"])
    trajectory = Trajectory(prepared.model, encoder, output, every=options["evaluate_every"], measure=measure)
    saver = Saver(
        output=output, run=run, journal=Journal(output, accelerator), trajectory=trajectory, source=source,
        every=options["save_steps"], resumed=() if held is None else (*held.resumed, held.state.step),
    )  # fmt: skip
    diagnosis = prepared.diagnosis(output) if options["diagnose"] else None
    if diagnosis is not None and held is None:
        announce(_look(diagnosis, "before", 0, accelerator))
    last, ended = _take_steps(options, saver, interrupt)
    kept = _keep(options, trajectory, last, ended)
    if diagnosis is not None:
        announce(_look(diagnosis, "after", kept, accelerator))
    weights = {name: whole(weight.detach()) for name, weight in run.trainable.items()}
    on_main(accelerator, lambda: save_adapter(prepared.model, prepared.loaded, output, method, weights))
    return _facts(prepared, saver, last, ended) | {"kept_step": kept}


def _look(diagnosis: Diagnosis, when: When, step: int, accelerator: Accelerator) -> str:
    """Return what a diagnosis says."""
    return on_main(accelerator, lambda: diagnosis.take(when, step))


def _take_steps(options: Mapping[str, Any], saver: Saver, interrupt: Interrupt) -> tuple[StepLog, Ended | None]:
    """Take the run's steps, log, measure and save them; return the last one, and the guard that ended it, if one did.

    Raises:
        Interrupted: a signal came before the run was over.
        NonFiniteLoss: with where the weights before it are.
    """
    guards = Guards(min_retain=options["min_retain"], max_repetition=options["max_repetition"])
    run, journal, trajectory = saver.run, saver.journal, saver.trajectory
    ended: Ended | None = None
    with journal, interrupt:
        on_main(run.accelerator, lambda: journal.report(trajectory.begin()))
        try:
            for log in run.steps():
                journal.write(log)
                is_asked = run.was_asked_to_stop
                if trajectory.is_due(log.step):
                    ended, is_asked = on_main(run.accelerator, lambda: _measure(saver, guards, interrupt))
                if ended is not None:
                    break
                if is_asked and not run.is_over:
                    raise _interrupted(saver)
                if saver.is_due(log.step):
                    saver.save()
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error} {saver.save_good()}") from None
    last = agreed(journal.last, run.accelerator)
    assert last is not None, "a run has at least one step"
    return last, ended


def _measure(saver: Saver, guards: Guards, interrupt: Interrupt) -> tuple[Ended | None, bool]:
    """Measure a step; return the guard that ends the run, if one does, and whether a signal came until now."""
    saver.journal.report(saver.trajectory.after_step(saver.run.step))
    return guards.check(saver.trajectory.points), interrupt.is_asked


def _interrupted(saver: Saver) -> Interrupted:
    path = saver.save()
    return Interrupted(f"interrupted at step {saver.run.step} of {saver.run.total_steps}, saved in {path}")


def _keep(options: Mapping[str, Any], trajectory: Trajectory, last: StepLog, ended: Ended | None) -> int:
    """Put back the weights of the step that is kept, and return it: what passed the guards, or the best by name."""
    points = trajectory.points
    if ended is not None:
        points = [point for point in points if point["step"] <= ended.step]
    elif options["keep_best"] is None:
        return last.step
    if not points:  # a process that only takes steps
        return last.step
    step = int(points[-1]["step"]) if options["keep_best"] is None else best_step(points, options["keep_best"])
    if step != last.step:
        trajectory.restore(step)
    return step


def _facts(prepared: Prepared, saver: Saver, last: StepLog, ended: Ended | None) -> dict[str, Any]:
    """Return what provenance records of a run that is over."""
    reader, run = prepared.reader, saver.run
    return {
        "device": str(prepared.loaded.device),
        "processes": run.accelerator.num_processes,
        "steps": last.step,
        "stopped": last.step < run.total_steps,
        "ended_by": _ended_by(run, last, ended),
        "resumed_at": list(saver.resumed),
        "forget_examples": len(prepared.forget),
        "retain_examples": len(prepared.retain),
        "caches": summary_of(reader.caches),
        "student_weights": reader.identity["weights"],
        "overridden": overridden_fields(reader.caches, reader.identity, prepared.options["override"]),
        "model_commit": prepared.loaded.checkpoint.commit,
        "data_commit": prepared.source.commit,
        "key_logprob": last.key_logprob,
        "key_teacher_logprob": last.key_teacher_logprob,
        "normal_logprob": last.normal_logprob,
    }


def _ended_by(run: Unlearning, last: StepLog, ended: Ended | None) -> dict[str, Any]:
    if ended is not None:
        return {"guard": ended.guard, "reason": ended.reason, "at_step": last.step}
    if last.step < run.total_steps:
        return {"guard": None, "reason": "key tokens are as unlikely as the teacher has them", "at_step": last.step}
    return {"guard": None, "reason": "all steps", "at_step": last.step}


def _out_of_memory(options: Mapping[str, Any], prepared: Prepared | None, error: BaseException) -> OutOfMemory:
    """Return an error that says which options fit; the model's sizes are those of its configuration."""
    checkpoint = resolve(options["model"], revision=options["revision"], processor=options["processor"])
    asked = Setting(
        element_size=4 if compute_dtype(options) == "float32" else 2, quantization=options["quantization"],
        gradient_checkpointing=options["gradient_checkpointing"], batch_size=options["per_device_train_batch_size"],
        accumulation=options["gradient_accumulation_steps"], lora_r=options["lora_r"],
    )  # fmt: skip
    sizes = sizes_of(checkpoint, trust_remote_code=options["trust_remote_code"])
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return OutOfMemory(
        f"expected memory for {'loading the model' if prepared is None else 'a step'}, found none left ({first[:200]})."
        f"\n{advice(sizes, asked, _longest(prepared))}"
    )


def _longest(prepared: Prepared | None) -> int:
    """Return the tokens of the longest example, its images among them, as far as some of them tell."""
    if prepared is None:
        return TYPICAL_TOKENS
    items = [*prepared.forget, *prepared.retain]
    chosen = items[:: max(1, len(items) // MOST_COUNTED)]
    return max(len(item.encode(prepared.loaded.encoder).input_ids) for item in chosen)
