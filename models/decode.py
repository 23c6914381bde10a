"""Continue prompts greedily, many at a time, every image run once: what `model.generate` says to each prompt alone.

What stands up to the last image runs once a picture, those of a batch side by side. What follows runs behind it as
texts do for a teacher (`forest.py`, `two_part.py`): without padding, beginnings that are alike once, and so many tokens
at once that nothing passing is large. Then all go on a token at a time, each with keys and values of its own in room
made once, since growing by concatenation would copy them all at every token. A sequence that has ended leaves, and one
from the end takes its place, so short replies do not wait for long ones. Positions are counted or the family's own
(`positions.py`). Which models this holds for is `decodable.py`'s to say.
"""

# U prefixes, P tokens of the longest, N sequences, n of them, S tokens of the longest suffix, T tokens of some suffixes
# end to end, R columns of room, Q tokens that ask, K columns they may see, h key-value heads, D head size, A axes of
# positions, V vocabulary, m sequences that move

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer

from .encode import Encoded, collate
from .forest import plant
from .forward import to_device
from .positions import backbone, rope_index_of
from .prefix import split_at_image
from .two_part import Part, attending, lay_out

_COLUMNS = 8  # rows of a mask begin at multiples of so many numbers, which fused kernels ask for
_TOKENS_AT_ONCE = 4096  # of suffixes: enough to keep a GPU busy


@torch.inference_mode()
def greedy(
    model: Any, rows: Sequence[Encoded], *, stop_ids: Collection[int], pad_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Return the likeliest continuation of each prompt, token by token, up to and with its stop token.

    Args:
        model: one that `reason_against` has nothing against.
        rows: prompts without answers.
        stop_ids: tokens that end a continuation.
        pad_id: what fills up prefixes of several lengths; nothing sees it.
        max_new_tokens: the most tokens of a continuation, at least one.
    """
    batch = Sequences(model, rows, pad_id=pad_id, max_new_tokens=max_new_tokens)
    replies: list[list[int]] = [[] for _ in rows]
    while True:
        tokens_N = batch.logits_NV.float().argmax(-1)
        tokens = tokens_N.tolist()
        for row, token in zip(batch.rows, tokens, strict=True):
            replies[row].append(token)
        places = _closed_up([token not in stop_ids for token in tokens])
        if not places or len(replies[batch.rows[places[0]]]) == max_new_tokens:
            return replies
        if len(places) < len(tokens):
            batch.keep(places)
            tokens_N = tokens_N[places]
        batch.advance(tokens_N)


def _closed_up(going: Sequence[bool]) -> list[int]:
    """Return which place each sequence that goes on had, in a batch where those from the end fill what is free."""
    places = [place for place, goes in enumerate(going) if goes]
    from_end = reversed(places)
    return [place if going[place] else next(from_end) for place in range(len(places))]


class Sequences:
    """Prompts that go on side by side: `rows` says which stands at each place, `logits_NV` what follows it."""

    def __init__(self, model: Any, rows: Sequence[Encoded], *, pad_id: int, max_new_tokens: int) -> None:
        prefixes, placed = _cut(rows)
        ran = _run_prefixes(model, prefixes, pad_id)
        which_N = torch.tensor([one.prefix for one in placed])
        length_N = torch.tensor([len(one.suffix) for one in placed])
        seen_NR = _seen(ran.is_token_UP[which_N], length_N, max_new_tokens)
        device = next(model.parameters()).device
        self.rows = [one.row for one in placed]
        self._model = model
        self._cache = _with_room(ran.cache, which_N.to(device), seen_NR.shape[1])
        self._hidden_N11R = torch.zeros(seen_NR.shape, dtype=model.dtype, device=device)[:, None, None]
        self._hidden_N11R.masked_fill_(~seen_NR[:, None, None].to(device), float("-inf"))
        self._position_N = (ran.behind_U[which_N] + length_N - 1).to(device)
        parts = _parts(length_N.tolist(), _TOKENS_AT_ONCE)
        self.logits_NV = torch.cat([self._run_suffixes(ran, placed, part, int(length_N.max())) for part in parts])
        for layer in self._cache.layers:
            layer.filled += int(length_N.max())

    def advance(self, tokens_N: Tensor) -> None:
        """Write a token behind every sequence, and find what follows it."""
        self._position_N = self._position_N + 1
        logits_N1V: Tensor = self._model(
            input_ids=tokens_N[:, None], position_ids=self._position_N[:, None],
            attention_mask=self._hidden_N11R[..., : self._cache.get_seq_length() + 1],
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        ).logits  # fmt: skip
        self.logits_NV = logits_N1V[:, -1]

    def keep(self, places: Sequence[int]) -> None:
        """Let sequences leave but those at some places; they come to stand in the order given (`_closed_up`'s)."""
        moved = [new for new, old in enumerate(places) if new != old]
        new_m = torch.tensor(moved, device=self._position_N.device, dtype=torch.long)
        old_m = torch.tensor([places[new] for new in moved], device=self._position_N.device, dtype=torch.long)
        for layer in self._cache.layers:
            layer.keys, layer.values = (_moved(part, new_m, old_m, len(places)) for part in (layer.keys, layer.values))
        self._hidden_N11R = _moved(self._hidden_N11R, new_m, old_m, len(places))
        self._position_N = _moved(self._position_N, new_m, old_m, len(places))
        self.rows = [self.rows[place] for place in places]

    def _run_suffixes(self, ran: "_Ran", placed: Sequence["_Placed"], part: slice, longest: int) -> Tensor:
        """Run the suffixes of some places; keep their keys and values, and return the logits [n, V] behind them."""
        groups = [list(group) for _, group in groupby(placed[part], key=lambda one: one.prefix)]
        forest = plant([[one.suffix for one in group] for group in groups])
        seen, positions, first = [], [], part.start
        for group, (start, stop) in zip(groups, forest.bounds, strict=True):
            length, behind = ran.lengths[group[0].prefix], int(ran.behind_U[group[0].prefix])
            seen.append(Part(start, stop, [layer.first_columns(first, length) for layer in self._cache.layers]))
            positions += [behind + depth for depth in forest.depths[start:stop]]
            first += len(group)
        device = self._position_N.device
        caught = DynamicCache(config=backbone(self._model).config.get_text_config())
        with attending(self._model, lay_out(forest.paths, seen, device, self._model.dtype)):
            logits_1nV: Tensor = self._model(
                input_ids=torch.tensor([forest.tokens], device=device),
                position_ids=torch.tensor([positions], device=device), past_key_values=caught, use_cache=True,
                logits_to_keep=torch.tensor([path[-1] for path in forest.paths], device=device),
            ).logits  # fmt: skip
        paths_nS = [[*path[:1] * (longest - len(path)), *path] for path in forest.paths]  # what fills them is hidden
        for layer, new in zip(self._cache.layers, caught.layers, strict=True):
            layer.fill(part, new, torch.tensor(paths_nS, device=device))
        return logits_1nV[0]


class _Placed(NamedTuple):
    """A prompt cut in two: which of the prefixes it has, what follows that, and which of the given prompts it is."""

    prefix: int
    suffix: tuple[int, ...]
    row: int


class _Ran(NamedTuple):
    """Prefixes that ran: their keys and values, which columns are tokens, and the position behind each."""

    cache: DynamicCache
    is_token_UP: Tensor
    behind_U: Tensor

    @property
    def lengths(self) -> list[int]:
        """How many tokens each has."""
        lengths: list[int] = self.is_token_UP.sum(1).tolist()
        return lengths


class _Room(DynamicLayer):  # type: ignore[misc]
    """Keys and values [N, h, R, D] of a layer, of which the first columns are filled; new ones go behind them.

    Columns are [prefix, filled up behind | suffix, filled up before | what is said].
    """

    def __init__(self, keys_NhRD: Tensor, values_NhRD: Tensor, filled: int) -> None:
        super().__init__()
        self.keys, self.values, self.filled = keys_NhRD, values_NhRD, filled
        self.is_initialized = True

    def update(self, key_NhQD: Tensor, value_NhQD: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Fill the next columns, and return all that are filled."""
        columns = slice(self.filled, self.filled + key_NhQD.shape[2])
        self.keys[:, :, columns], self.values[:, :, columns] = key_NhQD, value_NhQD
        self.filled = columns.stop
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        """Return how many columns are filled."""
        return self.filled

    def first_columns(self, place: int, length: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [1, h, length, D] at one place."""
        return self.keys[place : place + 1, :, :length], self.values[place : place + 1, :, :length]

    def fill(self, part: slice, new: Any, paths_nS: Tensor) -> None:
        """Write keys and values of tokens end to end, [1, h, T, D], behind what is filled at some places."""
        columns = slice(self.filled, self.filled + paths_nS.shape[1])
        for room, new_1hTD in ((self.keys, new.keys), (self.values, new.values)):
            taken_hnSD = new_1hTD[0].index_select(1, paths_nS.flatten()).unflatten(1, paths_nS.shape)
            room[part, :, columns] = taken_hnSD.transpose(0, 1)


def _cut(rows: Sequence[Encoded]) -> tuple[list[Encoded], list[_Placed]]:
    """Cut prompts after their last images: the different beginnings, and prompts with neighbors that begin alike.

    The encoder memoises pictures, so one picture is one object.
    """
    found: dict[tuple[object, ...], int] = {}
    prefixes, placed = [], []
    for index, row in enumerate(rows):
        ids, suffix = split_at_image(row)
        key = (ids, *map(id, row.pictures))
        if key not in found:
            found[key] = len(prefixes)
            of_tokens = {name: value[: len(ids)] for name, value in row.token_inputs.items()}
            prefixes.append(Encoded((), (), ids, row.pictures, of_tokens))
        placed.append(_Placed(found[key], suffix, index))
    return prefixes, sorted(placed)


def _run_prefixes(model: Any, prefixes: Sequence[Encoded], pad_id: int) -> _Ran:
    """Run prompt starts and images as one batch; causal attention hides the padding behind them."""
    inputs = collate(prefixes, pad_id=pad_id, side="right")
    is_token_UP = inputs["attention_mask"].bool()
    inputs["position_ids"] = _positions(model, prefixes, inputs)
    weights = next(model.parameters())
    cache = DynamicCache(config=backbone(model).config.get_text_config())
    model(**to_device(inputs, weights.device, weights.dtype), past_key_values=cache, use_cache=True, logits_to_keep=1)
    last_U = inputs["position_ids"].masked_fill(~is_token_UP, -1).amax(-1)  # of each axis, where there are several
    return _Ran(cache, is_token_UP, 1 + (last_U if last_U.dim() == 1 else last_U.amax(0)))


def _positions(model: Any, prefixes: Sequence[Encoded], inputs: dict[str, Tensor]) -> Tensor:
    """Return the positions of prefixes: [3, U, P] by the family's own index, or else counted, [U, P]."""
    rope_index = rope_index_of(model)
    if rope_index is None or not any(prefix.pictures for prefix in prefixes):
        return torch.arange(inputs["input_ids"].shape[1]).expand(len(prefixes), -1)
    known = {name: value for name, value in inputs.items() if name != "input_ids" and not value.is_floating_point()}
    position_AUP, _ = rope_index(inputs["input_ids"], **known)
    return position_AUP


def _seen(is_token_NP: Tensor, length_N: Tensor, max_new_tokens: int) -> Tensor:
    """Return which columns of room [N, R] the tokens behind each suffix may see, later ones aside."""
    before, longest = is_token_NP.shape[1], int(length_N.max())
    room = -(-(before + longest + max_new_tokens) // _COLUMNS) * _COLUMNS
    seen_NR = torch.arange(room) >= before + longest - length_N[:, None]
    seen_NR[:, :before] = is_token_NP
    return seen_NR


def _with_room(cache: DynamicCache, which_N: Tensor, room: int) -> Cache:
    """Return the keys and values of each sequence's prefix in room for all that comes behind; the cache is used up."""
    layers = []
    while cache.layers:
        layer: Any = cache.layers.pop(0)  # freed as soon as it is copied
        U, h, P, D = layer.keys.shape
        roomy = [part_UhPD.new_empty(len(which_N), h, room, D) for part_UhPD in (layer.keys, layer.values)]
        for part_NhRD, part_UhPD in zip(roomy, (layer.keys, layer.values), strict=True):
            part_NhRD[:, :, :P] = part_UhPD.index_select(0, which_N)
        layers.append(_Room(*roomy, P))
    return Cache(layers=layers)


def _parts(lengths: Sequence[int], at_once: int) -> Iterator[slice]:
    """Yield runs of places whose suffixes have so many tokens together, or one place."""
    start = total = 0
    for place, length in enumerate(lengths):
        if place > start and total + length > at_once:
            yield slice(start, place)
            start, total = place, 0
        total += length
    yield slice(start, len(lengths))


def _moved(whole: Tensor, new_m: Tensor, old_m: Tensor, count: int) -> Tensor:
    """Return the first entries of a tensor, into some of which others have moved."""
    if len(new_m):
        whole[new_m] = whole[old_m]
    return whole[:count]
