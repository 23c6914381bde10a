"""A run cut down to its first people: every split, every stage, the same people."""

from click.testing import CliRunner
from mllmu_fixture import write_mllmu
from viker.cli import viker
from viker.data.mini_files import make_mini
from viker.data.sources import open_source


def people_of(examples):
    return {example.people[0] for example in examples}


def make(*words):
    return CliRunner().invoke(viker, ["data", "make", *map(str, words)], catch_exceptions=False)


def test_the_first_people_are_kept_in_every_split(tmp_path, mini_world):
    assert make(mini_world, tmp_path / "run", "--ratio", 15, "--limit", 2).exit_code == 0
    whole, cut = open_source(str(mini_world), ratio=15), open_source(str(tmp_path / "run"))
    forget = set(sorted(whole.forget_people())[:2])
    retain = set(sorted(whole.people() - whole.forget_people())[:2])
    assert cut.forget_people() == forget
    assert cut.people() == forget | retain
    assert people_of(cut.read("forget")) == people_of(cut.read("test")) == forget
    assert people_of(cut.training("forget")) == forget
    assert people_of(cut.read("retain")) == people_of(cut.training("retain")) == retain
    assert people_of(cut.training("all")) == forget | retain
    assert len(people_of(cut.read("real"))) == 2


def test_the_questions_of_the_people_that_are_kept_are_all_there(tmp_path):
    write_mllmu(tmp_path / "source")
    whole = open_source(str(tmp_path / "source"))
    assert make(tmp_path / "source", tmp_path / "run", "--limit", 1).exit_code == 0
    cut = open_source(str(tmp_path / "run"))
    kept = cut.forget_people()
    asked = [example.id for example in whole.read("forget") if example.people[0] in kept]
    assert [example.id for example in cut.read("forget")] == asked


def test_the_embedded_benchmark_records_limit_and_people_too(tmp_path):
    make_mini(tmp_path / "data", seed=0, num_people=20, forget=["003", "007"], limit=1)
    source = open_source(str(tmp_path / "data"))
    assert source.forget_people() == {"003"}
    assert source.people() == {"003", "001"}


def test_somebody_who_is_not_in_the_world_cannot_be_forgotten(tmp_path):
    result = CliRunner().invoke(
        viker, ["data", "make", "mini", str(tmp_path / "d"), "--people", "20", "--forget", "021"]
    )
    assert "021" in str(result.exception)
    assert not (tmp_path / "d").exists()
