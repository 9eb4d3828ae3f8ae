"""The order of a matrix, who takes part in later repeats, what fits a budget, and going on where a file ends."""

import json
from argparse import Namespace
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from paceline.errors import UsageError


@pytest.fixture(scope="session")
def sitting(bench):
    return bench("sitting")


@pytest.fixture
def record(bench):
    report, client = bench("report"), bench("client")

    def make(contender, wall_s, *, kind="code", repeat=0, temperature=0.0):
        answer = client.Answer((0.1,), wall_s, "x", 100)
        cell = report.Cell("Q8_0", kind, 1, temperature)
        return report.Record(cell, contender, repeat, client.Run(wall_s, (answer,)), 0.0)

    return make


def test_what_comes_early_in_its_option_is_measured_early(sitting):
    order = sitting.rounds(["Q8_0", "F16"], ["code", "prose"], [1, 8], range(3))
    assert len(order) == len(set(order)) == 24
    assert order[0] == sitting.Round("Q8_0", "code", 1, 0)
    assert order[-1] == sitting.Round("F16", "prose", 8, 2)
    assert order.index(sitting.Round("Q8_0", "code", 1, 1)) < order.index(sitting.Round("F16", "code", 8, 0))


def test_the_first_rounds_have_every_value_of_every_dimension(sitting):
    axes = (["Q8_0", "F16", "Q4_K_M"], ["code", "prose", "repetitive", "adversarial"], [1, 8, 4])
    first = sitting.rounds(*axes, range(2))[:4]
    seen = zip(*((each.quantization, each.kind, each.streams) for each in first), strict=True)
    assert [set(values) for values in seen] == [set(axis) for axis in axes]
    assert {each.repeat for each in first} == {0}


def test_scouts_go_first_then_all_then_the_peer_s_fastest_settings_of_any_cell(sitting, bench, record):
    names = ["paceline", "llama-server", "paceline+auto", *(f"llama-server+n{n}p0" for n in (2, 3, 4, 8))]
    field = bench("contenders").contenders(names)
    speeds = {2: (1, 4), 3: (2, 3), 4: (3, 2), 8: (4, 5)}
    records = [record(f"llama-server+n{n}p0", wall) for n, (wall, _) in speeds.items()]
    records += [record(f"llama-server+n{n}p0", wall, temperature=0.8) for n, (_, wall) in speeds.items()]
    first, later = sitting.Round("Q8_0", "code", 1, 0), sitting.Round("Q8_0", "code", 1, 1)

    def taking_part(each, finalists, records=records):
        return [c.name for c in sitting.field_of(each, field, records, finalists)]

    scouted = [r for r in records if "n8" not in r.contender]
    assert taking_part(first, 1, []) == names[:-1]
    assert taking_part(later, 1, scouted) == names
    assert taking_part(later, 1) == [*names[:3], "llama-server+n2p0", "llama-server+n4p0"]
    assert taking_part(later, 0) == names
    assert taking_part(replace(later, kind="prose"), 1) == names[:-1]


def test_a_field_without_scouts_takes_part_from_the_first_round_on(sitting, bench):
    field = bench("contenders").contenders(["paceline", "mlx_lm.server+n16", "mlx_lm.server+n8"], "mlx_lm.server")
    assert sitting.field_of(sitting.Round("4-bit", "code", 1, 0), field, [], 2) == list(field)


def test_a_round_is_expected_to_take_what_its_like_took(sitting):
    code, prose = sitting.Round("Q8_0", "code", 1, 0), sitting.Round("Q8_0", "prose", 1, 0)
    assert sitting.expected_s(code, 10, []) is None
    many = sitting.Round("Q8_0", "code", 8, 0)
    taken = [sitting.Taken(*each) for each in ((code, 10, 100.0), (prose, 5, 100.0), (many, 1, 5.0))]
    assert sitting.expected_s(replace(code, repeat=1), 4, taken) == pytest.approx(40)
    assert sitting.expected_s(replace(code, quantization="F16"), 4, taken) == pytest.approx(80)
    assert sitting.expected_s(sitting.Round("F16", "code", 8, 0), 4, taken) == pytest.approx(20)
    assert sitting.expected_s(sitting.Round("F16", "code", 4, 0), 4, taken) == pytest.approx(80)


def test_a_sweep_has_every_block_once_and_those_of_the_same_servers_together(sitting):
    axes = (["Q8_0", "F16", "Q4_K_M"], ["code", "prose", "adversarial"], [1, 8, 4], range(2))
    order = sitting.rounds(*axes, sweep=True)
    assert sorted(order, key=str) == sorted(sitting.rounds(*axes), key=str)
    assert [each.repeat for each in order] == [0] * 27 + [1] * 27
    starts = [(each.quantization, each.streams) for each in order[:27:3]]
    assert [(each.quantization, each.streams) for each in order[:27]] == [s for s in starts for _ in range(3)]
    assert starts[:3] == [("Q8_0", 1), ("F16", 8), ("Q4_K_M", 4)]


@pytest.fixture
def sit(bench, monkeypatch, record, tmp_path):
    """Run `_sit` with rounds that take `minutes` each by a clock of its own; what was measured."""
    run = bench("run")
    clock = [0.0]
    measured = []
    code = ["as it was"]

    def one(each, field, engine, servers, options):
        clock[0] += 60 * options.minutes
        measured.append(each)
        return [record(c.name, 1.0, kind=each.kind, repeat=each.repeat) for c in field]

    monkeypatch.setattr(run, "_round", one)
    monkeypatch.setattr(run, "describe_machine", lambda: {"paceline": f"commit {len(measured)}", "date": "now"})
    monkeypatch.setattr(run, "measured_code", lambda modules: code[0])
    # A clock for that module alone: event loops of other tests go by the real one.
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def start(*argv, minutes=10.0, measured_code="as it was"):
        measured.clear()
        code[0] = measured_code
        wanted = ["--quantizations", "Q8_0", "--kinds", "code", "prose", "--streams", "1", "--repeats", "2"]
        options = run._arguments([*wanted, "--contenders", "paceline", "--json", str(tmp_path / "a.json"), *argv])
        records = run._sit(Namespace(**vars(options), minutes=minutes))
        return len(measured), len(records)

    return start


def test_a_budget_ends_a_sitting_between_rounds_and_the_next_goes_on(sit, tmp_path):
    assert sit("--budget", "25") == (2, 2)
    assert sit("--budget", "15") == (1, 3)
    assert sit() == (1, 4)
    assert sit() == (0, 4)
    kept = json.loads((tmp_path / "a.json").read_text())
    assert len(kept["rounds"]) == 4
    assert len(kept["sittings"]) == 3  # the fourth had nothing to keep
    assert not (tmp_path / "a.json.part").exists()


def test_what_meets_its_bars_is_not_repeated_where_only_what_misses_one_is_asked_for(sit, monkeypatch, bench, record):
    walls = {"code": 0.9, "prose": 1.1}

    def one(each, field, engine, servers, options):
        mine = record("paceline", walls[each.kind], kind=each.kind, repeat=each.repeat)
        return [mine, record("llama-server", 1.0, kind=each.kind, repeat=each.repeat)]

    monkeypatch.setattr(bench("run"), "_round", one)
    assert sit("--missed") == (0, 6)
    assert sit() == (0, 8)


def test_figures_taken_in_another_way_are_not_mixed(sit):
    sit("--budget", "1")
    with pytest.raises(UsageError, match="measured_with"):
        sit("--max-tokens", "7")


def test_code_that_differs_is_refused_and_a_commit_that_changes_none_is_not(sit, tmp_path, bench):
    sit("--budget", "1")
    with pytest.raises(UsageError, match="other code"):
        sit(measured_code="changed")
    for name in ("core/a.py", "plugins/b.py", "runtimes/c.py", "benchmarks/client.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")

    def digest():
        return bench("machine").measured_code(["client"], tmp_path)

    before = digest()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "d.py").write_text("2")
    (tmp_path / "benchmarks" / "report.py").write_text("2")
    assert digest() == before
    (tmp_path / "runtimes" / "c.py").write_text("2")
    changed = digest()
    assert changed != before
    (tmp_path / "benchmarks" / "client.py").write_text("2")
    assert digest() != changed


def test_a_round_is_named_as_its_cells_are(sitting):
    each = sitting.Round("F16", "code", 8, 1)
    assert str(each) == "F16, code, 8 streams, repeat 1"
    assert [str(cell) for cell in each.cells([0.0])] == ["F16, code, 8 streams, temperature 0"]
    assert sitting.Round(**asdict(each)) == each
