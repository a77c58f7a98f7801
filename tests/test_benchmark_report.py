"""The benchmarks' results as JSON, Markdown and SVG, and what a run writes into the README."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
README = "# Title\n\n<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\n\nThe rest\n"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The modules of the benchmarks directory: scripts, which import each other by their plain names."""
    names = ("report", "processes", "chart", "run")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name)


@pytest.fixture
def table(bench: Any) -> Any:
    return bench.report.Table(
        title="1 GiB over <TLS>",
        columns=["client", "MiB/s", "CPU s/GiB"],
        rows=[["theirs", 1234.5, 2.0], ["aiobaseten", 2000.0, 0.9], ["absent", None, None]],
        notes=["a note"],
        chart=bench.report.Chart(column="MiB/s", unit="MiB/s", detail="CPU s/GiB"),
    )


@pytest.fixture
def result(bench: Any, table: Any) -> Any:
    plain = bench.report.Table(title="Targets", columns=["what", "met"], rows=[["speed", "yes"]])
    return bench.report.Result(
        benchmark="upload", title="Uploads", settings={"rounds": 5}, tables=[table, plain], raw={"theirs": [1.0]}
    )


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "n/a"),
        (1024, "1024"),
        (1234.5, "1230"),
        (999.6, "1000"),
        (12.34, "12.3"),
        (9.999, "10.0"),
        (1.0, "1.00"),
        (0.012345, "0.0123"),
        (-2.5, "-2.50"),
        (0.0, "0"),
        (float("inf"), "inf"),
        ("a|b", "a\\|b"),
    ],
)
def test_cells_have_three_significant_digits(bench: Any, cell: object, text: str) -> None:
    assert bench.report.render(cell) == text


def test_a_table_as_markdown(bench: Any, table: Any) -> None:
    assert bench.report.markdown(table) == (
        "| client | MiB/s | CPU s/GiB |\n| :-- | --: | --: |\n| theirs | 1230 | 2.00 |\n| aiobaseten | 2000 | 0.900 |\n"
        "| absent | n/a | n/a |\n\n- a note\n"
    )


def test_a_row_of_another_length_is_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match="table 'T': each row must have 2 cells"):
        bench.report.Table(title="T", columns=["a", "b"], rows=[["x", 1], ["y"]])


@pytest.mark.parametrize("chart", [{"column": "other"}, {"column": "b", "detail": "other"}])
def test_a_chart_of_a_column_that_is_not_there_is_refused(bench: Any, chart: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a column that it does not have"):
        bench.report.Table(title="T", columns=["a", "b"], rows=[], chart=bench.report.Chart(unit="u", **chart))


def test_a_result_is_written_shown_and_read(bench: Any, result: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    bench.report.finish(result, bench.report.arguments("about").parse_args(["--json", str(file)]))
    assert capsys.readouterr().out == bench.report.section(result)
    written = json.loads(file.read_text())
    assert list(written) == ["benchmark", "title", "settings", "tables", "raw"]
    assert written["tables"][0]["chart"] == {"column": "MiB/s", "unit": "MiB/s", "detail": "CPU s/GiB"}
    assert written["tables"][1]["chart"] is None
    assert bench.report.read(file) == result


def test_nothing_is_written_unless_asked(bench: Any, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report.finish(result, bench.report.arguments("about").parse_args([]))
    assert capsys.readouterr().out.startswith("## Uploads\n\n### 1 GiB over <TLS>\n\n| client |")


def test_versions_of_what_is_installed_and_what_is_not(bench: Any) -> None:
    found = bench.report.versions("pytest", "surely-not-a-package-of-anyone")
    assert found == {"pytest": pytest.__version__, "surely-not-a-package-of-anyone": None}


def test_the_machine_is_described_without_its_name(bench: Any) -> None:
    machine = bench.report.machine()
    assert set(machine) == {"processor", "cores", "memory", "system", "Python", "OpenSSL"}
    assert all(machine.values())


def test_a_chart_has_a_bar_for_each_number_the_longest_first(bench: Any, table: Any) -> None:
    drawn = ElementTree.fromstring(bench.chart.svg(table))
    name = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in drawn.iter(f"{name}rect") if "bar" in bar.attrib["class"].split()]
    assert [bar.attrib["class"] for bar in bars] == ["bar ours", "bar"]
    widths = [int(bar.attrib["width"]) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(1234.5 / 2000, abs=0.01)
    texts = [text.text for text in drawn.iter(f"{name}text")]
    assert texts == ["1 GiB over <TLS>", "aiobaseten", "2000 MiB/s, 0.900 CPU s/GiB", "theirs", "1230 MiB/s, 2.00 CPU s/GiB"]


def test_a_chart_without_numbers_and_one_of_zeros_can_be_drawn(bench: Any) -> None:
    for rows, bars in ([["x", None]], 0), ([["x", 0.0]], 1):
        table = bench.report.Table(title="T", columns=["a", "b"], rows=rows, chart=bench.report.Chart(column="b", unit="u"))
        assert bench.chart.svg(table).count('class="bar"') == bars


def test_a_table_that_asks_for_no_chart_is_refused(bench: Any, result: Any) -> None:
    with pytest.raises(ValueError, match="table 'Targets' has no chart"):
        bench.chart.svg(result.tables[1])


def result_of(bench: Any, benchmark: str, *tables: Any) -> Any:
    return bench.report.Result(benchmark=benchmark, title=benchmark.capitalize(), settings={}, tables=tables, raw={})


@pytest.fixture
def saved(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A README and a directory of results, and what saves results there as if on a day."""
    readme, directory = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(README)

    def save(*results: Any, date: str = "2026-01-01") -> None:
        about = bench.run.About(date=date, machine=bench.report.machine(), versions={"pytest": pytest.__version__})
        with monkeypatch.context() as patch:
            patch.setattr(bench.run.About, "here_and_now", lambda: about)
            bench.run.save(results, readme=readme, directory=directory)

    return SimpleNamespace(save=save, readme=readme, directory=directory)


def test_saving_writes_figures_page_charts_and_the_headline(bench: Any, result: Any, saved: Any) -> None:
    saved.save(result)
    saved.save(result)
    told = saved.readme.read_text()
    assert told.startswith("# Title\n\n<!-- benchmark:begin -->\n![1 GiB over <TLS>](benchmarks/results/upload.svg)\n\n| client |")
    assert told.endswith("(benchmarks/results/README.md).\n<!-- benchmark:end -->\n\nThe rest\n")
    assert "1 GiB over <TLS>, on 2026-01-01: " in told
    assert "a note" not in told
    assert "old" not in told
    assert sorted(path.name for path in saved.directory.iterdir()) == ["README.md", "upload.json", "upload.svg"]
    kept = json.loads((saved.directory / "upload.json").read_text())
    assert list(kept) == ["date", "machine", "versions", "result"]
    assert kept["date"] == "2026-01-01"
    assert kept["result"]["raw"] == {"theirs": [1.0]}
    page = (saved.directory / "README.md").read_text()
    assert "![1 GiB over <TLS>](upload.svg)\n\n| client |" in page
    assert page.count("](upload") == 1
    assert "- a note" in page
    assert (saved.directory / "upload.svg").read_text() == bench.chart.svg(result.tables[0])


def test_each_benchmark_can_be_saved_by_itself(bench: Any, result: Any, table: Any, saved: Any) -> None:
    saved.save(result, result_of(bench, "memory", table))
    saved.save(result_of(bench, "bulk", table), date="2026-02-02")
    told = saved.readme.read_text()
    assert "on 2026-01-01: " in told
    assert "2026-02-02" not in told
    page = (saved.directory / "README.md").read_text()
    assert page.count(f"pytest {pytest.__version__}.") == 1
    parts = page.split("\n## ")
    assert [part.splitlines()[0] for part in parts] == ["# Benchmark results", "Uploads", "Bulk", "Memory"]
    assert [date in part for part in parts for date in ("2026-01-01.", "2026-02-02.")] == [
        *(False, False),
        *(True, False),
        *(False, True),
        *(True, False),
    ]
    saved.save(result_of(bench, "memory"), result, date="2026-02-02")
    parts = (saved.directory / "README.md").read_text().split("\n## ")
    assert ["2026-02-02." in part for part in parts] == [True, False, False, False]
    assert "](memory.svg)" not in parts[3]


def test_the_first_results_must_have_the_headline(bench: Any, table: Any, saved: Any) -> None:
    with pytest.raises(ValueError, match="no result of upload with a chart"):
        saved.save(result_of(bench, "memory", table))
    assert not saved.directory.exists()
    assert saved.readme.read_text() == README


def test_saving_without_the_headline_is_refused_before_anything_runs(
    bench: Any, saved: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.run, "RESULTS", saved.directory)
    monkeypatch.setattr("sys.argv", ["run.py", "--only", "memory", "--save"])
    with pytest.raises(SystemExit):
        bench.run.main()
    assert "no result of upload, the headline in the README, was kept yet" in capsys.readouterr().err


def test_what_is_kept_is_read_again(bench: Any, result: Any, tmp_path: Path) -> None:
    kept = bench.run.Kept(about=bench.run.About.here_and_now(), result=result)
    kept.write(tmp_path)
    assert bench.run.Kept.read(tmp_path / "upload.json") == kept


def test_a_second_chart_of_a_benchmark_has_a_number(bench: Any, result: Any, table: Any) -> None:
    twice = bench.report.Result(benchmark="upload", title="Uploads", settings={}, tables=[table, *result.tables], raw={})
    assert list(bench.run.charts([twice, result])) == ["upload.svg", "upload-2.svg"]


@pytest.mark.parametrize(
    "readme",
    [
        "# Title\n",
        "<!-- benchmark:begin -->\n",
        "<!-- benchmark:end -->\n",
        "<!-- benchmark:end -->\n<!-- benchmark:begin -->\n",
        README + README,
    ],
)
def test_a_readme_without_its_markers_stays_as_it_is_and_nothing_is_saved(
    bench: Any, result: Any, tmp_path: Path, readme: str
) -> None:
    (tmp_path / "README.md").write_text(readme)
    with pytest.raises(ValueError, match=r"README\.md must have one line <!-- benchmark:begin -->"):
        bench.run.save([result], readme=tmp_path / "README.md", directory=tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == readme


def test_a_benchmark_that_fails_fails_the_run_and_shows_why(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('the reason')\n")
    monkeypatch.setattr(bench.processes, "HERE", tmp_path)
    with pytest.raises(SystemExit, match=r"broken\.py: failed with exit status 1"):
        bench.run.run("broken", quick=True)
    assert "RuntimeError: the reason" in capfd.readouterr().err


def test_a_script_that_does_not_end_is_ended(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.setattr(bench.processes, "HERE", tmp_path)
    with pytest.raises(SystemExit, match=r"endless\.py: not done after 0 s"):
        bench.processes.run_script("endless.py", timeout_s=0.2)
