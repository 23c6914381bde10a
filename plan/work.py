"""What a request amounts to, counted in pairs and tokens before any weight is loaded.

A pair is one example under one set of images. Behind its prefix (prompt start and images, run once for all who share
it) follow the rest of its question and its answer, whose last token is never run. The cut is the engine's own
(`models/prefix.py`), order and blocks are the cache's own (`precompute/run.py`), so what is counted is what runs.
How much of it can be shared is `sharing.py`'s to count, what it costs `cost.py`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.example import EncodedImage
from ..models.encode import Encoder
from ..models.interventions import Intervention
from ..models.noise import layout_digest
from ..models.prefix import split_at_image
from ..precompute.run import Request, Work, samples_for
from ..precompute.writing.samples import Sample, blocks_of

Ids = tuple[int, ...]


class Suffix(NamedTuple):
    """What follows a prefix: the rest of the prompt (never empty) and the answer."""

    question: Ids
    answer: Ids

    @property
    def run(self) -> Ids:
        """The tokens that are run: the last answer token predicts nothing that is scored."""
        return (*self.question, *self.answer[:-1])


class Look(NamedTuple):
    """What is remembered of a picture: a number for its ids, the elements of its pixels, and its layout's digest."""

    ids: int
    pixels: int
    layout: str


class Prefix(NamedTuple):
    """A prefix: the digests of its images, a number for its ids, its length, and the elements of its pixel tensors."""

    digests: tuple[str, ...]
    ids: int
    length: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its samples, its pairs by prefix in the engine's order, and the rows that are averaged once each."""

    samples: Sequence[Sample]
    suffixes: Mapping[Prefix, Sequence[Suffix]]
    distinct_rows: int

    @property
    def stored_rows(self) -> int:
        """Rows that are stored: those of a row key once a person."""
        return sum(sample.num_rows for sample in self.samples)

    @property
    def pairs(self) -> list[tuple[Prefix, Suffix]]:
        """All pairs of an example and a set of images."""
        return [(prefix, suffix) for prefix, group in self.suffixes.items() for suffix in group]


@dataclass(frozen=True, slots=True)
class Planned:
    """All the work of a request, block by block, and how many images it shows."""

    blocks: Sequence[Block]
    num_images: int

    @property
    def stored_rows(self) -> int:
        """Rows that are stored."""
        return sum(block.stored_rows for block in self.blocks)

    @property
    def num_pairs(self) -> int:
        """Pairs of an example and a set of images that the teacher runs."""
        return sum(len(block.pairs) for block in self.blocks)

    @property
    def prefixes(self) -> set[Prefix]:
        """The distinct prefixes of all blocks."""
        return {prefix for block in self.blocks for prefix in block.suffixes}


def plan_work(request: Request, intervention: Intervention, encoder: Encoder) -> Planned:
    """Count a request's work; each picture is read once, since the processor says how many tokens it becomes."""
    works, samples, cutter = request.by_row_key, samples_for(request, intervention), _Cutter(encoder)
    blocks = []
    for start, stop in blocks_of(samples):
        keys = list(dict.fromkeys(sample.row_key for sample in samples[start:stop]))
        groups: dict[Prefix, list[Suffix]] = {}
        for key in keys:
            for prefix, suffix in cutter.pairs(works[key], intervention):
                groups.setdefault(prefix, []).append(suffix)
        rows = sum(len(works[key].answer_ids) for key in keys)
        blocks.append(Block(samples[start:stop], {prefix: groups[prefix] for prefix in sorted(groups)}, rows))
    return Planned(blocks, len(cutter.seen))


@dataclass(slots=True)
class _Cutter:
    """Cuts pairs behind their images; remembers how long pictures and prefixes are, never pixels."""

    encoder: Encoder
    seen: dict[str, Look] = field(default_factory=dict)  # by the image's digest
    _numbers: dict[Ids, int] = field(default_factory=dict)
    _cuts: dict[tuple[Ids, tuple[int, ...]], tuple[int, int, Ids]] = field(default_factory=dict)

    def pairs(self, work: Work, intervention: Intervention) -> Iterator[tuple[Prefix, Suffix]]:
        """Yield prefix and suffix of a work under each set of images that it is shown."""
        for view in intervention.views(work.example, work.row_key):
            looks = [self._look(image) for image in view.images]
            ids, length, question = self._cut(work, view.images, tuple(look.ids for look in looks))
            digests = view.digests([look.layout for look in looks])
            yield Prefix(digests, ids, length, sum(look.pixels for look in looks)), Suffix(question, work.answer_ids)

    def _look(self, image: EncodedImage) -> Look:
        if image.sha256 not in self.seen:
            picture = self.encoder.picture(image)
            pixels = max((tensor.numel() for tensor in picture.tensors.values()), default=0)
            self.seen[image.sha256] = Look(self._number(picture.ids), pixels, layout_digest(picture))
        return self.seen[image.sha256]

    def _cut(self, work: Work, images: Sequence[EncodedImage], looks: tuple[int, ...]) -> tuple[int, int, Ids]:
        """Return the number of a pair's prefix ids, their length, and its question; pictures of equal ids cut alike."""
        place = work.read_ids, looks
        if place not in self._cuts:
            encoded = self.encoder.assemble(work.example, work.read_ids, work.answer_ids, images)
            prefix_ids, rest = split_at_image(encoded)
            question = rest[: len(rest) - len(work.answer_ids)]
            self._cuts[place] = self._number(prefix_ids), len(prefix_ids), question
        return self._cuts[place]

    def _number(self, ids: Ids) -> int:
        return self._numbers.setdefault(ids, len(self._numbers))
