"""A cache whose making is killed, failed or shared, at any moment: what is sealed has the uninterrupted run's bytes."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.reading.verify import verify
from viker.precompute.writing.blocks import StorageError
from viker.precompute.writing.store import CacheBuilder, sweep
from viker.tests.cache_maker import LENGTHS, NUM_BLOCKS, PHASES, Makers, path_of
from viker.tests.cache_samples import fill_block, make_builder, make_cache, make_fingerprint, make_rows, tree_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

ENOSPC, EIO = errno.ENOSPC, errno.EIO


class Trial(NamedTuple):
    """A maker that was killed, and the run that finished its work."""

    phases: tuple[str, ...]  # where the kills hit
    staged: int
    lost: int


class Uninterrupted(NamedTuple):
    """A maker that nothing happened to: its bytes, and the phase of each of its events."""

    files: dict[str, bytes]
    phases: list[str]

    def events_of(self, phase: str) -> list[int]:
        return [number for number, found in enumerate(self.phases, 1) if found == phase]


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Makers]:
    makers = Makers()
    yield makers
    makers.close()


@pytest.fixture(scope="module")
def whole(makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("whole")
    assert makers.run(folder / "home", trace=str(folder / "trace")) == (0, "")
    return Uninterrupted(tree_bytes(folder / "home"), (folder / "trace").read_text().splitlines())


def staged(home: Path) -> set[int]:
    """The blocks that are on disk; all of them where the cache is sealed."""
    if list(home.glob("*/manifest.json")) and not list(home.glob("*.sealing/manifest.json")):
        return set(range(NUM_BLOCKS))
    return {int(path.name.removeprefix("block-")) for path in home.glob("*.building/block-?????")}


def computed(home: Path, name: str | None = None) -> list[int]:
    """The blocks that a maker, or any maker, began to compute, in order."""
    log = home.with_name(f"{home.name}.log")
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [int(block) for maker, block in lines if name in (None, maker)]


def finish(makers: Makers, home: Path, whole: Uninterrupted) -> None:
    """Run another maker, undisturbed: it computes what is not staged, leaves the right bytes, and nothing else."""
    missing = set(range(NUM_BLOCKS)) - staged(home)
    assert makers.run(home, "finisher", timeout_s=12.0) == (0, "")
    assert sorted(computed(home, "finisher")) == sorted(missing)
    assert tree_bytes(home) == whole.files
    assert [path.name for path in home.iterdir()] == [next(iter(whole.files)).partition("/")[0]]


def kill_and_finish(makers: Makers, home: Path, whole: Uninterrupted, *die_at: int, **order: Any) -> Trial:
    """Kill a maker at an event, the next at another, and so on; then let one finish."""
    phases, lost = [], 0
    for number, event in enumerate(die_at):
        name, trace = f"victim-{number}", home.with_name(f"{home.name}.trace-{number}")
        status, _ = makers.run(home, name, die_at=event, trace=str(trace), **order)
        lost += len(set(computed(home, name)) - staged(home))
        assert lost <= 2 * (number + 1), "a kill costs the block being computed and the one being written, at most"
        if status == 0:  # a second maker has less to do, and may end before it is killed
            break
        assert status == -signal.SIGKILL
        phases.append(trace.read_text().splitlines()[-1])
    so_far = len(staged(home))
    finish(makers, home, whole)
    return Trial(tuple(phases), so_far, lost)


def kill_after_and_finish(makers: Makers, home: Path, whole: Uninterrupted, seconds: float) -> Trial:
    """Kill a maker after a time, wherever that finds it, in the middle of a write too; then let one finish."""
    trace = home.with_name(f"{home.name}.trace")
    pid = makers.start(home, "victim", seconds=0.005, trace=str(trace))
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # it was faster this time
        os.kill(pid, signal.SIGKILL)
    assert makers.wait(pid)[0] in (0, -signal.SIGKILL)
    lost = len(set(computed(home, "victim")) - staged(home))
    assert lost <= 2
    so_far, events = len(staged(home)), trace.read_text().splitlines() if trace.exists() else []
    finish(makers, home, whole)
    return Trial((events[-1] if events else "not begun",), so_far, lost)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_any_phase_it_resumes_to_the_same_bytes(phase, makers, whole, tmp_path):
    event = random.Random(phase).choice(whole.events_of(phase))
    assert kill_and_finish(makers, tmp_path / "home", whole, event).phases == (phase,)


@pytest.mark.slow
def test_a_hundred_random_kills(makers, whole, tmp_path, capsys):
    """60 at a random event, 20 at two, 20 at a random time."""
    rng, started = random.Random(0), time.monotonic()
    events = [*(rng.choice(whole.events_of(phase)) for phase in PHASES), *(whole_event(rng, whole) for _ in range(49))]
    pairs = [(whole_event(rng, whole), whole_event(rng, whole) // 2 + 1) for _ in range(20)]
    trials = [kill_and_finish(makers, tmp_path / f"once-{i}", whole, event) for i, event in enumerate(events)]
    trials += [kill_and_finish(makers, tmp_path / f"twice-{i}", whole, *pair) for i, pair in enumerate(pairs)]
    begun = time.monotonic()
    makers.run(tmp_path / "slowed", seconds=0.005)
    most = time.monotonic() - begun
    trials += [kill_after_and_finish(makers, tmp_path / f"t-{i}", whole, rng.uniform(0, most)) for i in range(20)]
    hits = collections.Counter(phase for trial in trials for phase in trial.phases)
    with capsys.disabled():
        lost = dict(collections.Counter(trial.lost for trial in trials))
        seconds = time.monotonic() - started
        sys.stdout.write(
            f"\n{len(trials)} runs, {sum(hits.values())} kills, {seconds:.0f} s; lost blocks: {lost}; {hits}\n"
        )
    assert len(trials) >= 100
    assert hits.keys() >= set(PHASES)
    assert len({trial.staged for trial in trials}) > 10, "early and late"


@pytest.mark.slow
def test_killed_at_every_event_of_one_block(makers, whole, tmp_path):
    begun = [number for number, phase in enumerate(whole.phases) if phase == "claim" and number]
    starts = [number for number in begun if whole.phases[number - 1] != "claim"]  # of dropping one, of taking the next
    window = range(starts[8], starts[10] + 1)
    phases = {kill_and_finish(makers, tmp_path / str(event), whole, event).phases[0] for event in window}
    assert phases == {"claim", "block written", "block fsynced", "block renamed"}


def whole_event(rng: random.Random, whole: Uninterrupted) -> int:
    return rng.randint(1, len(whole.phases))


def test_an_uninterrupted_maker_has_the_same_events_every_time(makers, whole, tmp_path):
    """Otherwise an event's number would not name a moment, and kills would miss some."""
    makers.run(tmp_path / "again", trace=str(tmp_path / "trace"))
    assert (tmp_path / "trace").read_text().splitlines() == whole.phases
    assert set(whole.phases) == set(PHASES)
    assert len(make_builder(tmp_path / "again", LENGTHS).blocks) == NUM_BLOCKS


class Recorded(NamedTuple):
    """One call of fsync, rename, replace, unlink or rmdir, with the size of the file at that moment."""

    what: str
    path: str
    size: int


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What is made durable, in order."""
    calls: list[Recorded] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            path = path_of(target) if isinstance(target, int) else str(target)
            named = str(arguments[0]) if name in ("rename", "replace") else path
            calls.append(Recorded(name, named, os.fstat(target).st_size if name == "fsync" else 0))
            return real(target, *arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace", "rmdir"):
        record(name)
    return calls


def test_nothing_is_named_before_it_is_durable(tmp_path, recorded):
    builder = make_builder(tmp_path, LENGTHS)
    joined = [call.path for call in recorded if call.what == "fsync"]
    assert str(tmp_path) in joined, "the staging folder's own name"

    recorded.clear()
    fill_block(builder, 0)
    block = builder.staging / "block-00000"
    assert [call.what for call in recorded] == ["fsync", "replace", "fsync"]
    assert recorded[0].path.endswith(".partial")
    assert [call.path for call in recorded[1:]] == [str(block), str(builder.staging)]
    assert recorded[0].size == block.stat().st_size, "all of it, not what was buffered"

    for number in range(1, len(builder.blocks)):
        fill_block(builder, number)
    recorded.clear()
    root = builder.assemble()
    order = [(call.what, call.path) for call in recorded]
    listed = tree_bytes(root).keys() - {"manifest.json"}
    renamed = order.index(("rename", str(root)))
    folder = next(Path(path).parent for what, path in order if what == "replace" and path.endswith("manifest.json"))
    manifest = order.index(("replace", str(folder / "manifest.json")))
    before = {Path(path) for what, path in order[: manifest - 1] if what == "fsync"}
    assert {folder / name for name in listed} <= before, "every file that the manifest lists"
    folders = {folder / parent for name in listed for parent in Path(name).parents}
    assert folders <= before, "and every folder they lie in"
    sizes = {call.path: call.size for call in recorded if call.what == "fsync"}
    assert all(sizes[str(folder / name)] == (root / name).stat().st_size for name in listed)
    assert order[manifest - 1][0] == "fsync"
    assert order[manifest - 1][1].endswith(".partial"), "the manifest's own bytes, before it has its name"
    assert order[manifest + 1] == ("fsync", str(folder)), "its name, before the cache has its own"
    assert order[renamed + 1] == ("fsync", str(tmp_path)), "the cache's name, before a block is removed"
    assert renamed == manifest + 2
    removals = [number for number, (what, _) in enumerate(order) if what in ("rename", "rmdir") and number != renamed]
    assert min(removals) > renamed + 1


def test_a_cache_whose_name_may_not_be_durable_keeps_its_blocks(tmp_path, monkeypatch):
    builder = make_builder(tmp_path, LENGTHS)
    for block in range(NUM_BLOCKS):
        fill_block(builder, block)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if path_of(descriptor) == str(tmp_path) and builder.sealed:
            raise OSError(EIO, os.strerror(EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        builder.assemble()
    assert len(list(builder.staging.glob("block-?????"))) == NUM_BLOCKS
    assert not (builder.staging / "seal.claim").exists(), "others need not wait for it"
    monkeypatch.undo()
    assert make_builder(tmp_path, LENGTHS).assemble() == builder.root
    assert list(tmp_path.iterdir()) == [builder.root]


def test_blocks_that_vanish_while_they_are_sealed_are_named(tmp_path, monkeypatch):
    builder = make_builder(tmp_path, LENGTHS)
    for block in range(NUM_BLOCKS):
        fill_block(builder, block)
    builder.complete_blocks()
    (builder.staging / "block-00007").unlink()
    with pytest.raises(CacheError, match=r"expected all 25 blocks, found 1 missing \(first 7\)"):
        builder.assemble()
    fill_block(builder, 7)
    (builder.staging / "block-00008").write_bytes(b"")
    with pytest.raises(CacheError, match=r"block-00008: expected \d+ values.*found fewer.*computes that block"):
        builder.assemble()
    assert 8 not in builder.complete_blocks()
    fill_block(builder, 8)
    assert verify(builder.assemble(), "full") == []


def leftovers(home: Path, builder: CacheBuilder) -> list[Path]:
    """What killed makers of a cache may leave: an interrupted seal, one on its way out, half a block, staged blocks."""
    builder.staging.mkdir(exist_ok=True)
    (builder.staging / "block-00000").write_bytes(b"a block")
    (builder.staging / "block-00001.0123.partial").write_bytes(b"half a block")
    for name in ("0123", "4567"):
        folder = home / f"{builder.key[:16]}.{name}.sealing" / "cache.zarr" / "token"
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text("{}")
    return [path for path in home.iterdir() if "." in path.name]


def test_what_was_left_beside_a_sealed_cache_is_swept(tmp_path):
    root = make_cache(tmp_path, LENGTHS)
    builder = make_builder(tmp_path, LENGTHS)
    assert len(leftovers(tmp_path, builder)) == 3
    sweep(root)
    assert list(tmp_path.iterdir()) == [root]
    assert verify(root, "full") == []


def test_sweeping_one_cache_leaves_another_alone(tmp_path):
    root = make_cache(tmp_path, LENGTHS)
    other = make_builder(tmp_path, LENGTHS, make_fingerprint(weights="00" * 32))
    kept = leftovers(tmp_path, other)
    sweep(root)
    assert sorted(tmp_path.iterdir()) == sorted([root, *kept])


def test_half_blocks_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    old, new = builder.staging / "block-00001.01.partial", builder.staging / "block-00002.02.partial"
    for path in (old, new):
        path.write_bytes(b"half a block")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    make_builder(tmp_path, LENGTHS)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_writer_whose_half_block_was_swept_while_it_was_stopped_writes_it_again(tmp_path, monkeypatch):
    builder = make_builder(tmp_path, LENGTHS)
    real, swept = os.fsync, []

    def fsync(descriptor: int) -> None:
        if not swept:
            swept.append(path_of(descriptor))
            Path(swept[0]).unlink()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    fill_block(builder, 0)
    assert swept[0].endswith(".partial")
    assert builder.complete_blocks() == [0]


def test_a_folder_in_the_cache_s_place_is_named_before_anything_is_computed(tmp_path):
    root = make_builder(tmp_path, LENGTHS).root
    root.mkdir()
    (root / "fingerprint.json").write_text("{}")
    with pytest.raises(CacheError, match=r"expected a complete cache or nothing.*without manifest.json.*Remove it"):
        make_builder(tmp_path, LENGTHS)


def fail_and_finish(makers: Makers, home: Path, whole: Uninterrupted, fail: tuple[int, int, bool]) -> str:
    """Fail a maker's file operation, or all from that one on; then let one finish. Return the error it reported."""
    status, error = makers.run(home, "unlucky", fail=fail)
    assert status == 0 or error.startswith("StorageError: "), error
    assert status == 0 or "run the same command to resume" in error
    assert "\n" not in error
    assert len(set(computed(home, "unlucky")) - staged(home)) <= 2
    finish(makers, home, whole)
    return error


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [ENOSPC, EIO], ids=["full", "failing"])
def test_a_disk_that_fails_in_any_phase_is_one_clear_error(code, lasting, makers, whole, tmp_path):
    rng, reported = random.Random(code), []
    for number, phase in enumerate(PHASES):
        event = rng.choice(whole.events_of(phase))
        reported.append(fail_and_finish(makers, tmp_path / str(number), whole, (event, code, lasting)))
    assert sum(map(bool, reported)) >= len(PHASES) - 4, "what is only cleaning up may fail in silence"


@pytest.mark.slow
@pytest.mark.parametrize("code", [ENOSPC, EIO], ids=["full", "failing"])
def test_a_disk_that_fails_at_every_tenth_event(code, makers, whole, tmp_path):
    errors = [
        fail_and_finish(makers, tmp_path / str(event), whole, (event, code, event % 20 == 1))
        for event in range(1, len(whole.phases), 10)
    ]
    assert sum(map(bool, errors)) > len(errors) / 2


@contextlib.contextmanager
def disk(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 24, 60, 110, 130, 200])
def test_a_small_disk_is_full_while_joining_staging_or_sealing(kilobytes, makers, whole, tmp_path):
    place = tmp_path / "small"
    with disk(place, f"size={kilobytes}k"):
        status, error = makers.run(place / "home", "unlucky")
        assert status == 1
        assert error.startswith("StorageError: ")
        assert "No space left on device" in error
        assert "found 0 free" in error or kilobytes > 100
        assert not list((place / "home").glob("*.sealing")), "it takes the room that the next run needs"
        subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
        so_far = len(staged(place / "home"))
        (tmp_path / "home.log").touch()
        finish(makers, place / "home", whole)
    assert (so_far == NUM_BLOCKS) == (kilobytes > 120)


def test_a_read_only_home_is_one_clear_error_and_still_read(tmp_path):
    place = tmp_path / "shared"
    with disk(place, "size=16m"):
        root = make_cache(place, LENGTHS)
        other = make_fingerprint(weights="00" * 32)
        leftovers(place, make_builder(place, LENGTHS))
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        with pytest.raises(StorageError, match=r"expected a folder to write in, found Read-only file system.*writable"):
            make_builder(place, LENGTHS, other)
        sweep(root)  # warns, and raises nothing
        assert make_builder(place, LENGTHS).assemble() == root
        assert len(TeacherCache.open(root).load()) == sum(LENGTHS)


def test_a_file_in_the_home_s_place_is_one_clear_error(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StorageError, match=r"expected a folder to write in, found (Not a directory|File exists)"):
        make_builder(tmp_path / "home", LENGTHS)


def test_a_file_too_large_for_the_user_s_limit_is_one_clear_error(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from viker.tests.cache_samples import fill_block, make_builder\n"
        "builder = make_builder(Path(sys.argv[1]), [300] * 20)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n    fill_block(builder, 0)\nexcept OSError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StorageError ")
    assert "File too large" in done.stdout
    assert [path.name for path in next(tmp_path.glob("*.building")).glob("block-*")] == []


def test_an_unreadable_block_is_computed_again(tmp_path, monkeypatch, caplog):
    builder = make_builder(tmp_path, LENGTHS)
    for block in range(NUM_BLOCKS):
        fill_block(builder, block)
    real, broken = Path.read_bytes, builder.staging / "block-00003"

    def read_bytes(path: Path) -> bytes:
        if path == broken:
            raise OSError(EIO, os.strerror(EIO))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert set(range(NUM_BLOCKS)) - set(builder.complete_blocks()) == {3}
    assert "block-00003 is damaged (" in caplog.text
    monkeypatch.undo()
    fill_block(builder, 3)
    assert verify(builder.assemble(), "full") == []


def test_rows_are_gathered_a_shard_at_a_time(tmp_path, monkeypatch):
    """Memory does not grow with the cache; that the bytes are those of the whole is the golden files' to say."""
    builder = make_builder(tmp_path, [3000] * 25)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    real, asked = CacheBuilder._rows_of_array, []

    def rows_of_array(self: CacheBuilder, name: str, start: int, stop: int) -> Any:
        asked.append((name, start, stop))
        return real(self, name, start, stop)

    monkeypatch.setattr(CacheBuilder, "_rows_of_array", rows_of_array)
    cache = TeacherCache.open(builder.assemble())
    assert [bounds for name, *bounds in asked if name == "token/kept_id"] == [
        [0, 32768],
        [32768, 65536],
        [65536, 75000],
    ]
    rows = cache.load()
    for block in (0, 10, 11, 24):  # the second shard begins within block 10
        expected, inside = make_rows(3000, block), slice(block * 3000, (block + 1) * 3000)
        assert (rows.kept_ids_NK[inside] == expected["kept_id"]).all()
        assert (rows.entropy_N[inside] == expected["entropy"]).all()
