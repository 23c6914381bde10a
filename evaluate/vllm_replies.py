"""Greedy replies through vLLM, for teams that serve with it: LoRA adapters beside their base, everything else as it is.

The protocol is the one of `generate.py`: our encoder's ids, greedy, our stop tokens, replies decoded by our tokenizer.
vLLM reads token ids with one placeholder an image, and the ids it read have to be ours. An adapter whose weights lie in
the language model alone goes along as LoRA; any other is refused, for vLLM would leave part of it out. vLLM runs in a
process of its own (`processes.py`), so its memory is free again before the next model is loaded, and what it finished
outlives a kill. It schedules requests itself, so batches here are only what a kill can cost.

Likelihoods stay with transformers: vLLM's of a prompt are the rows of precompute's engine, whose whole-vocabulary
lists cost more here than they are worth. Rounding is vLLM's own, so a reply may differ where two tokens tie.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ..data.example import DataError, Example
from ..models.decodable import changing_settings
from ..models.encode import Encoder
from ..models.load import Checkpoint
from ..models.pictures import decode
from ..models.vllm_lora import lora_settings, require_language_only
from ..models.vllm_prompt import require_same_ids, vllm_prompt
from ..models.vllm_start import read_options, require_vllm, share_image_processor, start_llm
from ..models.vllm_weights import lay_out
from .processes import Compute, Loading, Work, run_batches
from .work import Batch, Job, Result, encode_job, stamp_of

BATCH_SIZE = 256  # requests handed over at once: enough to keep it busy


class VllmReplies:
    """Replies of one model through one started `vllm.LLM`."""

    def __init__(self, llm: Any, encoder: Encoder, *, lora: Any | None = None, repetition_penalty: float = 1.0) -> None:
        self._llm = llm
        self._encoder = encoder
        self._lora = lora
        self._repetition_penalty = repetition_penalty

    def reply(self, examples: Sequence[Example], max_new_tokens: Sequence[int]) -> list[str]:
        """Return the greedy reply to each example, of at most so many tokens each.

        Raises:
            DataError: an example cannot be encoded, vLLM read other ids than ours, or a reply found no more room.
        """
        rows = [self._encoder.encode_prompt(example) for example in examples]
        decoded = {image.sha256: decode(image) for image in _images(examples)}
        prompts = [
            vllm_prompt(row.prompt_ids, example.images, decoded) for row, example in zip(rows, examples, strict=True)
        ]
        params = [self._sampling(longest) for longest in max_new_tokens]
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._lora)
        except ValueError as error:  # an adapter it cannot run, a prompt longer than it takes
            raise DataError(f"--engine vllm: {' '.join(str(error).split())} Use --engine transformers.") from error
        for example, row, output in zip(examples, rows, outputs, strict=True):
            require_same_ids(example.id, row.input_ids, output.prompt_token_ids)
        replies = zip(examples, outputs, max_new_tokens, strict=True)
        tokens = [_tokens(example.id, output.outputs[0], longest) for example, output, longest in replies]
        texts = self._encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _sampling(self, max_new_tokens: int) -> Any:
        from vllm import SamplingParams

        # Its own idea of an end token is set aside, for ours.
        return SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, detokenize=False, ignore_eos=True,
            stop_token_ids=sorted(self._encoder.stop_ids), repetition_penalty=self._repetition_penalty,
        )  # fmt: skip


def open_vllm_replies(
    checkpoint: Checkpoint, encoder: Encoder, options: Sequence[str], *, dtype: str, trust_remote_code: bool
) -> VllmReplies:
    """Start vLLM in this process over a model, an adapter beside its base.

    Args:
        checkpoint: the model.
        encoder: its encoder, whose ids and image processor are the truth.
        options: NAME=VALUE texts of vLLM's arguments.
        dtype: what it computes in.
        trust_remote_code: whether code that comes with the model runs.

    Raises:
        DataError: vLLM is not installed, an option is not one of its, it reads pictures otherwise, the adapter changes
            more than the language model, or the model is made to decode in a way that vLLM is not told.
    """
    require_vllm()
    penalty = _repetition_penalty(checkpoint.weights)
    settings = read_options(options, _defaults(checkpoint, trust_remote_code))
    base = replace(checkpoint, adapter=None)
    with tempfile.TemporaryDirectory(prefix="viker-vllm-") as scratch:
        directory = lay_out(base, Path(scratch), dtype=dtype, trust_remote_code=trust_remote_code)
        llm = start_llm(directory, settings, dtype=dtype, trust_remote_code=trust_remote_code)
        share_image_processor(llm, encoder)
    return VllmReplies(llm, encoder, lora=_lora_request(checkpoint), repetition_penalty=penalty)


def vllm_replies(
    checkpoint: Checkpoint, examples: Sequence[Example], encoder: Encoder, *, max_new_tokens: Sequence[int],
    options: Sequence[str] = (), dtype: str = "float32", trust_remote_code: bool = False,
) -> list[str]:  # fmt: skip
    """Return a model's greedy replies by vLLM, started in this process for them; see `open_vllm_replies`."""
    opened = open_vllm_replies(checkpoint, encoder, options, dtype=dtype, trust_remote_code=trust_remote_code)
    return opened.reply(examples, max_new_tokens)


@dataclass(frozen=True, slots=True)
class VllmOpening:
    """How a child starts vLLM: picklable values; see `processes.Opening`."""

    loading: Loading
    options: tuple[str, ...]

    def open(self, process: int) -> Compute:
        """Start vLLM; there is one such child, and which GPUs it uses is vLLM's own affair."""
        loading = self.loading
        opened = open_vllm_replies(
            loading.checkpoint, loading.encoder(), self.options, dtype=loading.dtype,
            trust_remote_code=loading.trust_remote_code,
        )  # fmt: skip

        def reply(batch: Batch, jobs: Sequence[Job]) -> list[Result]:
            chosen = [jobs[index] for index in batch.jobs]
            return list(opened.reply([job.example for job in chosen], [job.max_new_tokens for job in chosen]))

        return reply


def run_jobs_with_vllm(
    jobs: Sequence[Job], loading: Loading, *, options: Sequence[str], folder: Path, desc: str
) -> list[Result]:
    """Generate replies by vLLM in a process of its own, and return them in order; finished batches are kept.

    Args:
        jobs: replies, no scores.
        loading: the model; its device and attention are vLLM's to choose.
        options: NAME=VALUE texts of vLLM's arguments.
        folder: where journals are, of this and of earlier runs; not one that jobs of transformers use.
        desc: name of the progress bar.

    Raises:
        DataError: what `open_vllm_replies` and `VllmReplies.reply` say.
        ProcessEnded: the process ended before its work did.
    """
    assert all(job.kind == "reply" for job in jobs), "likelihoods are for transformers"
    found, encoder = require_vllm(), loading.encoder()
    if loading.checkpoint.adapter is not None:
        require_language_only(loading.checkpoint, trust_remote_code=loading.trust_remote_code)
    for job in jobs:
        encode_job(encoder, job)  # what cannot be asked is said before vLLM starts
    batches = plan_for_vllm(jobs)
    num_threads = torch.get_num_threads()
    engine = {"engine": f"vllm {found}", "options": " ".join(options)}
    stamp = stamp_of(jobs, batches, encoder, {**loading.stamp(num_threads), **engine})
    work = Work(jobs, batches, stamp, folder, num_threads)
    return run_batches(work, VllmOpening(loading, tuple(options)), num_processes=1, desc=desc)


def plan_for_vllm(jobs: Sequence[Job]) -> list[Batch]:
    """Cut replies into batches, those about one picture side by side: what its tower made of it is still there."""
    order = sorted(range(len(jobs)), key=lambda index: [image.sha256 for image in jobs[index].example.images])
    cut = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    return [Batch("reply", 0, tuple(indices)) for indices in cut]


def _defaults(checkpoint: Checkpoint, trust_remote_code: bool) -> dict[str, Any]:
    """Return vLLM's arguments where the user names none: a CPU build compiles nothing, an adapter needs room."""
    found: dict[str, Any] = {"enforce_eager": not torch.cuda.is_available()}
    if checkpoint.adapter is not None:
        require_language_only(checkpoint, trust_remote_code=trust_remote_code)
        found |= lora_settings(checkpoint.adapter)
    return found


def _lora_request(checkpoint: Checkpoint) -> Any | None:
    if checkpoint.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(checkpoint.adapter.resolve()))


def _repetition_penalty(weights: Path) -> float:
    """Return the repetition penalty a model is generated with by default, the one such setting that vLLM is told."""
    if not (weights / "generation_config.json").is_file():
        return 1.0
    others = changing_settings(GenerationConfig.from_pretrained(weights))
    penalty = float(others.pop("repetition_penalty", 1.0))
    if others:
        found = ", ".join(f"{name} {value}" for name, value in sorted(others.items()))
        raise DataError(
            f"{weights}: expected generation settings that greedy decoding in vLLM follows, found others ({found}). "
            "Use --engine transformers."
        )
    return penalty


def _images(examples: Sequence[Example]) -> list[Any]:
    return list({image.sha256: image for example in examples for image in example.images}.values())


def _tokens(name: str, reply: Any, max_new_tokens: int) -> list[int]:
    tokens = list(reply.token_ids)
    if reply.finish_reason == "length" and len(tokens) < max_new_tokens:
        raise DataError(
            f"{name}: expected room for a reply of {max_new_tokens} tokens, found room for {len(tokens)}. Allow more "
            "with --vllm-option max_model_len=N, or fewer with --max-new-tokens."
        )
    return tokens
