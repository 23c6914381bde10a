"""The teacher run live, by taking the adapter off: the exactness oracle of cached rows, and what a cache saves.

A LoRA student without its adapter is the vanilla model, so no second copy is loaded. Rows come whole (K = V, float32),
so nothing is lost to storage or a tail. `naive` runs an example's k images as one batch, as peers' code does;
`shared-prefix` runs each image once and every question of the micro-batch behind it. Which images an example is shown
is the intervention's draw, the same as precompute's.
"""

# k images of an example, M answer tokens, V vocabulary, T tokens of all suffixes, D hidden

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.example import DataError
from ..data.references import open_pool
from ..data.source import Source
from ..models.encode import Encoded, Encoder, answer_rows, collate
from ..models.forest import plant
from ..models.forward import answer_logits, to_device
from ..models.interventions import Intervention, encode_view, pixels_digest
from ..models.prefix import compute_prefix, run_forest, split_at_image
from ..precompute.cache import row_key
from ..precompute.topk import rows_from_probabilities
from .batches import Item
from .method import Reads
from .rows import TeacherRows
from .steps import RowsOf

LogProbs = list[Tensor]  # of each pass over one example, [M, V]
PassesOf = Callable[[Any, Sequence[Sequence[Encoded]], int], Iterator[LogProbs]]


def online_intervention(options: Mapping[str, Any], reads: Reads, source: Source) -> Intervention:
    """Return what a live teacher is shown, by the options of training.

    Raises:
        DataError: references are to be shown, and no pool is named.
    """
    if reads.kind == "reference" and options["pool"] is None:
        raise DataError(
            "--teacher-from online: expected --pool, a folder of irrelevant images or patterns, noise, celebrities, "
            "found none. Name the one that `viker precompute` would get."
        )
    return Intervention(
        kind=reads.kind, pool=open_pool(options["pool"], source) if reads.kind == "reference" else None,
        num_references=options["num_references"] or (1 if reads.kind == "noise" else 8), seed=options["draw_seed"],
        shared=options["shared_references"], instruction=options["instruction"],
    )  # fmt: skip


def online_rows(model: Any, encoder: Encoder, intervention: Intervention, passes_of: PassesOf) -> RowsOf:
    """Return what gives the rows of items by running `model` without its adapter."""

    @torch.no_grad()
    def rows_of(items: Sequence[Item]) -> TeacherRows:
        shown = [views_of(encoder, intervention, item) for item in items]
        answer_ids_M = torch.tensor([token for item in items for token in item.answer_ids])
        was_training = model.training
        model.eval()
        with model.disable_adapter():
            parts = [_average(passes) for passes in passes_of(model, shown, encoder.pad_id)]
        model.train(was_training)
        mean_MV, entropy_M = (torch.cat(column) for column in zip(*parts, strict=True))
        return _as_rows(mean_MV, entropy_M, answer_ids_M.to(mean_MV.device))

    return rows_of


def views_of(encoder: Encoder, intervention: Intervention, item: Item) -> list[Encoded]:
    """Return an item in tokens as each pass of the teacher is shown it."""
    key = row_key(item.prompt_ids, item.answer_ids, pixels_digest(item.example, intervention.kind))
    asked = intervention.asked(item.example)
    read_ids = item.prompt_ids if asked is item.example else encoder.ids(asked)[0]
    views = intervention.views(item.example, key)
    return [encode_view(encoder, item.example, read_ids, item.answer_ids, view)[0] for view in views]


def naive_passes(model: Any, shown: Sequence[Sequence[Encoded]], pad_id: int) -> Iterator[LogProbs]:
    """Yield each example's distributions, its k images as one batch."""
    weights = next(model.parameters())
    for views in shown:
        inputs = to_device(collate(views, pad_id=pad_id, side="right"), weights.device, weights.dtype)
        batch_M, position_M, _ = answer_rows(views)
        logprobs_MV = torch.log_softmax(answer_logits(model, inputs, batch_M, position_M).float(), dim=-1)
        yield list(logprobs_MV.split([len(view.answer_ids) for view in views]))


def shared_prefix_passes(model: Any, shown: Sequence[Sequence[Encoded]], _pad_id: int) -> Iterator[LogProbs]:
    """Yield each example's distributions, every image run once and all suffixes behind it as one trie."""
    groups: dict[tuple[Any, ...], list[tuple[int, int, Encoded]]] = {}
    for example, views in enumerate(shown):
        for place, view in enumerate(views):
            key = (split_at_image(view)[0], *(id(picture) for picture in view.pictures))
            groups.setdefault(key, []).append((example, place, view))
    found: list[dict[int, Tensor]] = [{} for _ in shown]
    for members in groups.values():
        members.sort(key=lambda member: _suffix(member[2]))
        for (example, place, _), logprobs_MV in zip(members, _behind_one_image(model, members), strict=True):
            found[example][place] = logprobs_MV
    for passes in found:
        yield [passes[place] for place in sorted(passes)]


def _behind_one_image(model: Any, members: Sequence[tuple[int, int, Encoded]]) -> Iterator[Tensor]:
    views = [view for _, _, view in members]
    prefix = compute_prefix(model, split_at_image(views[0])[0], views[0])
    forest = plant([[_suffix(view) for view in views]])
    states_TD = run_forest(model, [prefix], forest)
    head = model.get_output_embeddings()
    for view, path in zip(views, forest.paths, strict=True):
        yield torch.log_softmax(head(states_TD[path[-len(view.answer_ids) :]]).float(), dim=-1)


def _suffix(view: Encoded) -> tuple[int, ...]:
    """Return what follows the image; the last answer token predicts nothing that is scored."""
    return split_at_image(view)[1][:-1]


def _average(passes: LogProbs) -> tuple[Tensor, Tensor]:
    """Return the averaged distribution [M, V] of an example's passes, and the mean of their entropies [M]."""
    logprobs_kMV = torch.stack(passes)
    probs_kMV = logprobs_kMV.exp()
    entropy_kM = -(probs_kMV * logprobs_kMV.clamp_min(-200.0)).sum(-1)
    return probs_kMV.mean(0), entropy_kM.mean(0)


def _as_rows(mean_MV: Tensor, entropy_M: Tensor, answer_ids_M: Tensor) -> TeacherRows:
    arrays = rows_from_probabilities(mean_MV, entropy_M, answer_ids_M, mean_MV.shape[1], torch.float32)
    return TeacherRows(
        kept_ids_MK=arrays["kept_id"], kept_logprobs_MK=arrays["kept_logprob"], tail_logprob_M=arrays["tail_logprob"],
        answer_ids_M=answer_ids_M, answer_logprob_M=arrays["answer_logprob"], entropy_M=arrays["entropy"],
        sum_squares_M=arrays["sum_squares"],
    )  # fmt: skip
