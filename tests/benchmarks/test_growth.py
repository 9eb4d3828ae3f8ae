"""Tables of what more work costs, the models it is measured with, and the page that tables are written to."""

import json
from dataclasses import asdict

import pytest

from paceline.errors import UsageError


@pytest.fixture(scope="session")
def growth(bench):
    return bench("growth")


@pytest.fixture
def taken(growth, bench):
    client = bench("client")

    def make(value, contender, gap_s, *, repeat=0, axis="context"):
        answer = client.Answer((0.5, 0.5 + gap_s, 0.5 + 2 * gap_s), 1.0, "x", 3)
        run = client.Run(1.0, (answer,))
        return growth.Taken(growth.Point(axis, "Q8_0", value), contender, repeat, run, 0.0)

    return make


def row(text, *cells):
    """The cells of the row that begins with these."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return next(line for line in lines if line[: len(cells)] == list(cells))


def test_a_contender_is_compared_with_the_peer_and_with_itself_at_the_least(growth, taken):
    records = [taken(512, "paceline", 0.1), taken(512, "llama-server", 0.1)]
    records += [taken(8192, "paceline", 0.3), taken(8192, "llama-server", 0.2)]
    text = growth.tables(records)
    assert text.startswith("### context, Q8_0")
    assert row(text, "prompt of 8192 tokens", "paceline")[6:9] == ["300.0", "300.0", "3.00x"]
    assert row(text, "prompt of 8192 tokens", "llama-server")[8] == "2.00x"
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("paceline", "llama-server"),
        ("paceline+n3", "llama-server+n3"),
        ("paceline+auto", "llama-server"),
        ("llama-server+n3", "llama-server+n3"),
    ],
)
def test_with_a_draft_the_peer_has_the_same(growth, name, other):
    assert growth.counterpart(name) == other


def test_figures_survive_their_file(growth, taken):
    made = taken(4, "paceline", 0.1, axis="streams")
    assert growth.Taken.from_json(json.loads(json.dumps(asdict(made)))) == made


def test_every_axis_is_measured_over_all_its_values(growth):
    options = growth.arguments(["--quantizations", "Q8_0", "F16"])
    found = list(growth.points(options))
    assert len(found) == len(set(found)) == 2 * 5 + 2 * 5 + 4
    assert {p.quantization for p in found if p.axis == "vocabulary"} == {"F16"}
    assert [p.value for p in growth.points(growth.arguments(["--axes", "context", "--values", "7"]))] == [7]


def test_a_pair_of_random_weights_has_the_vocabulary_that_was_asked_for(bench, tmp_path):
    models, shape = bench("growth_models"), bench("enlarge").Shape(64, 1, 2, 1, 64)
    models.write_random(tmp_path / "words.gguf", shape, 5000)
    source = bench("enlarge").Source.read(tmp_path / "words.gguf")
    tokens = source.value("tokenizer.ggml.tokens")
    assert len(tokens) == len(set(tokens)) == len(source.value("tokenizer.ggml.token_type")) == 5000
    assert tuple(source.weights["token_embd.weight"].shape) == (64, 5000)
    with pytest.raises(UsageError, match="too few"):
        models.write_random(tmp_path / "few.gguf", shape, 12)


# The page


def kept(growth, taken, folder):
    content = {
        "measures": "growth",
        "machine": {"date": "2026", "processor": "P", "memory": "M", "paceline": "1, commit c"},
        "records": [asdict(taken(512, "paceline", 0.1))],
    }
    (folder / "a.json").write_text(json.dumps(content))


def test_tables_are_written_between_their_markers_and_a_section_before_the_older_ones(bench, growth, taken, tmp_path):
    page = bench("page")
    kept(growth, taken, tmp_path)
    old = f"# Page\n\n{page.NEWEST}\n## Older\n\n<!-- figures: a.json -->\nstale\n<!-- /figures -->\nwords\n"
    new = page.written(old, tmp_path)
    assert "stale" not in new
    assert "prompt of 512 tokens" in new
    assert new.endswith("words\n")
    assert page.written(new, tmp_path) == new
    again = page.with_section(new, "Older", "a.json", tmp_path)
    assert (again.count("## Older"), again.count("figures: a.json")) == (1, 1)
    assert "[Every figure](a.json)" in again
    assert again.endswith("words\n")
    added = page.with_section(new, "Newer", "a.json", tmp_path)
    assert added.index("## Newer") < added.index("## Older")
    assert "2026, P, M, 1, commit c." in added
    assert page.written(added, tmp_path) == added


def test_what_the_sections_compare_is_summed_up_at_the_top(bench, growth, taken, tmp_path):
    page = bench("page")
    kept(growth, taken, tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    runs = [taken(512, "llama-server", 0.08), taken(8192, "paceline", 0.1), taken(8192, "llama-server", 0.2)]
    content["records"] += [asdict(each) for each in runs]
    (tmp_path / "a.json").write_text(json.dumps(content))
    text = "<!-- standing -->\n<!-- /standing -->\n## Long, *prompts*\n<!-- figures: a.json -->\n<!-- /figures -->\n"
    rows = [line.split(" | ") for line in page.written(text, tmp_path).splitlines() if "the peer's |" in line]
    assert rows[0][:5] == [
        "| [Long, *prompts*](#long-prompts)",
        "first token over the peer's",
        "≤ 1.00x",
        "2 of 2",
        "0",
    ]
    assert rows[1][3:] == ["1 of 2", "0", "0.88x", "1.25x: prompt of 512 tokens, no draft |"]


def test_a_file_without_figures_is_refused(bench, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no figures"):
        bench("page").tables_of(tmp_path / "a.json")


def test_the_page_says_what_its_files_hold(bench):
    page = bench("page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.NEWEST in text
    assert page.written(text, page.PAGE.parent) == text
