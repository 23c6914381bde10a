"""Continue prompts greedily, many at a time, every image run once: what `model.generate` says to each prompt alone.

What stands up to the last image runs once a picture, those of a batch side by side. What follows runs behind it as
texts do for a teacher (`forest.py`, `two_part.py`): without padding, beginnings that are alike once, and so many tokens
at once that nothing passing is large. Of both only keys and values are wanted, so the last layer is left as soon as it
has made its own. Then all go on a token at a time, the last of the prompt first, each with keys and values of its own
in room made once: growing by concatenation would copy them all at every token. A sequence that has ended leaves, and
one from the end takes its place, so short replies do not wait for long ones. Positions are counted or the family's own
(`positions.py`). Which models this holds for is `decodable.py`'s to say.
"""

# U prefixes, P tokens of the longest, N sequences, n of them, S tokens of the longest middle (what is between prefix
# and last token), T tokens of some middles end to end, R columns of room, Q tokens that ask, h key-value heads, D head
# size, A axes of positions, V vocabulary, m sequences that move

import contextlib
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

from .encode import Encoded, collate
from .forest import plant
from .forward import to_device
from .positions import backbone, rope_index_of
from .prefix import split_at_image
from .two_part import Part, attending, lay_out

_COLUMNS = 8  # rows of a mask begin at multiples of so many numbers, which fused kernels ask for
_TOKENS_AT_ONCE = 4096  # of middles: enough to keep a GPU busy

KeysAndValues = tuple[Tensor, Tensor]  # of a layer


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
        length_N = torch.tensor([len(one.middle) for one in placed])
        seen_NR = _seen(ran.is_token_UP[which_N], length_N, max_new_tokens)
        device = next(model.parameters()).device
        self.rows = [one.row for one in placed]
        self._model = model
        self._rooms = _rooms(ran.layers, which_N.to(device), seen_NR.shape[1])
        self._cache = Cache(layers=[*self._rooms])
        self._hidden_N11R = torch.zeros(seen_NR.shape, dtype=model.dtype, device=device)[:, None, None]
        self._hidden_N11R.masked_fill_(~seen_NR[:, None, None].to(device), float("-inf"))
        self._position_N = (ran.behind_U[which_N] + length_N - 1).to(device)
        longest = int(length_N.max())
        for part in _parts(length_N.tolist(), _TOKENS_AT_ONCE):
            self._run_middles(ran, placed, part, longest)
        for room in self._rooms:
            room.filled += longest
        self.advance(torch.tensor([one.last for one in placed], device=device))

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
        for layer in self._rooms:
            layer.keys, layer.values = (_moved(part, new_m, old_m, len(places)) for part in (layer.keys, layer.values))
        self._hidden_N11R = _moved(self._hidden_N11R, new_m, old_m, len(places))
        self._position_N = _moved(self._position_N, new_m, old_m, len(places))
        self.rows = [self.rows[place] for place in places]

    def _run_middles(self, ran: "_Ran", placed: Sequence["_Placed"], part: slice, longest: int) -> None:
        """Run the middles of some places behind their prefixes, and put their keys and values into the room."""
        groups = [list(group) for _, group in groupby(placed[part], key=lambda one: one.prefix)]
        forest = plant([[one.middle for one in group] for group in groups])
        seen, positions, first = [], [], part.start
        for group, (start, stop) in zip(groups, forest.bounds, strict=True):
            length, behind = int(ran.is_token_UP[group[0].prefix].sum()), int(ran.behind_U[group[0].prefix])
            seen.append(Part(start, stop, [room.first_columns(first, length) for room in self._rooms]))
            positions += [behind + depth for depth in forest.depths[start:stop]]
            first += len(group)
        device = self._position_N.device
        with attending(self._model, lay_out(forest.paths, seen, device, self._model.dtype)):
            made = _keys_and_values(
                self._model, input_ids=torch.tensor([forest.tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
            )  # fmt: skip
        paths_nS = [[*path[:1] * (longest - len(path)), *path] for path in forest.paths]  # what fills them is hidden
        place_nS = torch.tensor(paths_nS, device=device)
        for room, (keys_1hTD, values_1hTD) in zip(self._rooms, made, strict=True):
            room.fill(part, keys_1hTD[0], values_1hTD[0], place_nS)


class _Placed(NamedTuple):
    """A prompt cut in three: which prefix it has, what follows, its last token; and which of the prompts it is."""

    prefix: int
    middle: tuple[int, ...]
    last: int
    row: int


class _Ran(NamedTuple):
    """Prefixes that ran: keys and values [U, h, P, D], which columns are tokens, and the position behind each."""

    layers: list[KeysAndValues]
    is_token_UP: Tensor
    behind_U: Tensor


class _EnoughError(Exception):
    """The last layer has made its keys and values."""


class _Caught(Cache):
    """Catches the keys and values that layers make, and ends the pass with the last of them."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self.made: list[KeysAndValues] = []
        self._num_layers = num_layers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what a layer made and return it: nothing came before."""
        self.made.append((key_states, value_states))
        if len(self.made) == self._num_layers:
            raise _EnoughError
        return key_states, value_states


def _keys_and_values(model: Any, **inputs: Tensor) -> list[KeysAndValues]:
    """Return the keys and values [B, h, T, D] that every layer makes of some inputs; nothing behind them is computed.

    Raises:
        ValueError: some layers make none.
    """
    caught = _Caught(backbone(model).config.get_text_config().num_hidden_layers)
    with contextlib.suppress(_EnoughError):
        model(**inputs, past_key_values=caught, use_cache=True, logits_to_keep=1)
        raise ValueError(f"expected keys and values of every layer, found those of {len(caught.made)}")
    return caught.made


class _Room(DynamicLayer):
    """Keys and values [N, h, R, D] of a layer, of which the first columns are filled; new ones go behind them.

    Columns are [prefix, filled up behind | middle, filled up before | last token | what is said].
    """

    keys: Any
    values: Any

    def __init__(self, keys_NhRD: Tensor, values_NhRD: Tensor, filled: int) -> None:
        super().__init__()
        self.keys, self.values, self.filled = keys_NhRD, values_NhRD, filled
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Fill the next columns, and return all that are filled."""
        columns = slice(self.filled, self.filled + key_states.shape[2])
        self.keys[:, :, columns], self.values[:, :, columns] = key_states, value_states
        self.filled = columns.stop
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        """Return how many columns are filled."""
        return self.filled

    def first_columns(self, place: int, length: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [1, h, length, D] at one place."""
        return self.keys[place : place + 1, :, :length], self.values[place : place + 1, :, :length]

    def fill(self, part: slice, keys_hTD: Tensor, values_hTD: Tensor, place_nS: Tensor) -> None:
        """Write, behind what is filled at some places, keys and values from theirs among tokens end to end."""
        columns = slice(self.filled, self.filled + place_nS.shape[1])
        for room, new_hTD in ((self.keys, keys_hTD), (self.values, values_hTD)):
            taken_hnSD = new_hTD.index_select(1, place_nS.flatten()).unflatten(1, place_nS.shape)
            room[part, :, columns] = taken_hnSD.transpose(0, 1)


def _cut(rows: Sequence[Encoded]) -> tuple[list[Encoded], list[_Placed]]:
    """Cut prompts after their last images and before their ends; those with one beginning are neighbors, sorted.

    The encoder memoises pictures, so one picture is one object.
    """
    found: dict[tuple[object, ...], int] = {}
    prefixes: list[Encoded] = []
    placed = []
    for index, row in enumerate(rows):
        ids, suffix = split_at_image(row)
        key = (ids, *map(id, row.pictures))
        if key not in found:
            found[key] = len(prefixes)
            of_tokens = {name: value[: len(ids)] for name, value in row.token_inputs.items()}
            prefixes.append(Encoded((), (), ids, row.pictures, of_tokens))
        placed.append(_Placed(found[key], suffix[:-1], suffix[-1], index))
    return prefixes, sorted(placed)


def _run_prefixes(model: Any, prefixes: Sequence[Encoded], pad_id: int) -> _Ran:
    """Run prompt starts and images as one batch; causal attention hides the padding behind them."""
    inputs = collate(prefixes, pad_id=pad_id, side="right")
    is_token_UP = inputs["attention_mask"].bool()
    inputs["position_ids"] = _positions(model, prefixes, inputs)
    weights = next(model.parameters())
    layers = _keys_and_values(model, **to_device(inputs, weights.device, weights.dtype))
    last_U = inputs["position_ids"].masked_fill(~is_token_UP, -1).amax(-1)  # of each axis, where there are several
    return _Ran(layers, is_token_UP, 1 + (last_U if last_U.dim() == 1 else last_U.amax(0)))


def _positions(model: Any, prefixes: Sequence[Encoded], inputs: dict[str, Tensor]) -> Tensor:
    """Return the positions of prefixes: [3, U, P] by the family's own index, or else counted, [U, P]."""
    rope_index = rope_index_of(model)
    if rope_index is None or not any(prefix.pictures for prefix in prefixes):
        return torch.arange(inputs["input_ids"].shape[1]).expand(len(prefixes), -1)
    known = {name: value for name, value in inputs.items() if name != "input_ids" and not value.is_floating_point()}
    position_AUP, _ = rope_index(inputs["input_ids"], **known)
    return position_AUP


def _seen(is_token_NP: Tensor, length_N: Tensor, max_new_tokens: int) -> Tensor:
    """Return which columns of room [N, R] the tokens behind each middle may see, later ones aside."""
    before, longest = is_token_NP.shape[1], int(length_N.max())
    room = -(-(before + longest + max_new_tokens) // _COLUMNS) * _COLUMNS
    seen_NR = torch.arange(room) >= before + longest - length_N[:, None]
    seen_NR[:, :before] = is_token_NP
    return seen_NR


def _rooms(layers: list[KeysAndValues], which_N: Tensor, room: int) -> list[_Room]:
    """Return the keys and values of each sequence's prefix with room for all that comes behind; uses up the layers."""
    rooms = []
    while layers:
        pair = layers.pop(0)  # freed as soon as it is copied
        keys_NhRD, values_NhRD = (_roomy(part_UhPD, which_N, room) for part_UhPD in pair)
        rooms.append(_Room(keys_NhRD, values_NhRD, pair[0].shape[2]))
    return rooms


def _roomy(part_UhPD: Tensor, which_N: Tensor, room: int) -> Tensor:
    _, h, P, D = part_UhPD.shape
    part_NhRD = part_UhPD.new_empty(len(which_N), h, room, D)
    part_NhRD[:, :, :P] = part_UhPD.index_select(0, which_N)
    return part_NhRD


def _parts(lengths: Sequence[int], at_once: int) -> Iterator[slice]:
    """Yield runs of places whose middles have so many tokens together, or one place."""
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
