import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread

from bitkd.cli import main
from bitkd.compare.comparison import Comparison
from bitkd.compare.record_file import to_json
from bitkd.compare.runs import Predictions
from bitkd.errors import InputError
from bitkd.report import plots
from bitkd.report.write import write_report

PARTS = {
    "answer",
    "differences",
    "pictures",
    "plot-size",
    "plot-cost",
    "plot-curves",
    "pipelines",
    "details",
    "definitions",
}


class Page(HTMLParser):
    """Ids, texts and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.tags, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "poster", "xlink:href", "action"):
                self.addresses.append(value)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def report(folder, runs_of):
    if not (folder / "index.html").exists():
        write_report(runs_of(), folder)
    return folder


def test_the_page_holds_all_parts_and_fetches_nothing(report):
    text = (report / "index.html").read_text()
    page = Page(text)
    assert set(page.ids) >= PARTS
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 3
    assert text.count('<ul class="pipeline">') == 5
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    words = " ".join(page.texts)
    for expected in (
        "what W2A8 steps give",
        "no task metric",
        "2 (all counted)",
        "without General KD",
        "torch 2.13.0",
        "x86_64",
    ):
        assert expected in words
    cells = re.findall(r"<td.*?</td>", text)
    assert max(map(len, cells)) < 80  # sentences stand below the tables
    for link in re.findall(r'href="#([a-z]+)"', text[: text.index("<svg")]):
        assert link in page.ids
    assert words.index("teacher score retained") < words.index("95 %, these models") < words.index("Score, size, cost")


def test_svg_colours_are_the_pages_variables(report):
    text = (report / "index.html").read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    used = set(re.findall(r"var\((--\w+)\)", drawn))
    assert used >= {"--ink", "--muted", "--grid", "--arm0", "--arm4"}
    for colours in re.findall(r":root\{(--.*?)\}", text):
        assert used <= set(re.findall(r"(--\w+):", colours))
    assert "#000000" not in drawn


def test_a_report_is_made_again_from_its_record_to_the_byte(report, tmp_path, capsys):
    assert main(["compare", str(report / "comparison.json"), "--out", str(tmp_path / "again")]) == 0
    capsys.readouterr()
    names = {file.name for file in report.iterdir()}
    assert names == {"index.html", "report.md", "comparison.csv", "comparison.json", "size.png", "cost.png", "curves.png",
                     "pipelines.png"}  # fmt: skip
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes(), name


def test_the_tables_are_there_for_people_and_machines(report, runs_of, capsys):
    with open(report / "comparison.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    runs = runs_of()
    assert len(rows) == sum(len(run.stages) for run in runs)
    assert {(row["arm"], row["seed"]) for row in rows} == {(run.pipeline, str(run.seed)) for run in runs}
    assert float(rows[-1]["dev/accuracy"]) == runs[-1].final.score
    markdown = (report / "report.md").read_text()
    assert all(f"({name}.png)" in markdown for name in ("size", "cost", "curves", "pipelines"))
    assert main(["compare", str(report), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"arms", "differences", "rows", "warnings", "majority"}
    assert len(found["rows"]) == len(rows)
    by_arm = {arm["arm"]: arm for arm in found["arms"]}
    assert by_arm["multistage"]["score"]["count"] == 2
    assert f"{by_arm['multistage']['score']['mean']:.4f} ± " in markdown
    assert by_arm["multistage"]["cost"]["steps"] - by_arm["multistage"]["cost_without_general"]["steps"] == 600
    assert main(["compare", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "what W2A8 steps" in shown
    assert "stage2_binary" in shown


def test_records_can_be_taken_together(run_of, tmp_path, capsys):
    for number, name in enumerate(("multistage", "singlestage")):
        (tmp_path / f"{number}.json").write_text(to_json([run_of(name, 1)]))
    assert main(["compare", str(tmp_path / "0.json"), str(tmp_path / "1.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [arm["arm"] for arm in found["arms"]] == ["multistage", "singlestage"]
    assert [difference["low"] for difference in found["differences"]] == [None]
    assert found["warnings"] == [
        "No common budget (multistage: 2,100 steps; singlestage: 600 steps): a difference is that of the training's length as "
        "well; budget.steps=, budget.flops= or budget.seconds= makes it equal.",
        "One seed: nothing here says how much the numbers vary from seed to seed.",
    ]


def test_one_run_alone_is_a_report_too(run_of, tmp_path):
    write_report([run_of("halfternary", 1)], tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    assert set(page.ids) >= PARTS - {"differences"}


def test_a_folder_that_cannot_be_written_is_bad_input(run_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not writable"):
        write_report([run_of("singlestage", 1)], tmp_path / "file")


def test_it_is_found_before_pictures_are_drawn(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda comparison: pytest.fail("drawn"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not writable"):
        write_report([run_of("singlestage", 1)], tmp_path / "file")


def test_the_terminal_tells_seeds_and_arms_apart_whatever_the_runs_are_called(run_of, tmp_path, capsys):
    runs = [run_of("singlestage", 1), run_of("singlestage", 2), run_of("multistage", 1)]
    for name in ("singlestage", "own"):
        runs = [replace(run, name=name) for run in runs]
        file = tmp_path / f"{name}.json"
        file.write_text(to_json(runs))
        assert main(["compare", str(file)]) == 0
        shown = capsys.readouterr().out
        firsts = re.findall(rf"^ {name} +(\w+) +(\d) +teacher", shown, re.MULTILINE)
        assert firsts == [("singlestage", "1"), ("singlestage", "2"), ("multistage", "1")]


def test_long_names_leave_the_pictures_whole(run_of):
    """What stands in a figure stands within it, and curves keep their room."""
    runs = [
        replace(
            run_of("singlestage", 1),
            settings={f"stages.single_binary.{name}": value for name in ("lr", "warmup_ratio")},
        )
        for value in (0.0001, 0.0002, 0.0005)
    ]
    comparison = Comparison.of([*runs, run_of("multistage", 1)])
    assert max(len(arm.label) for arm in comparison.arms) > 80
    for name, figure in plots.draw(comparison).items():
        figure.draw_without_rendering()
        across, down = figure.get_size_inches() * figure.dpi
        for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
            box = legend.get_window_extent() if legend else figure.bbox
            assert box.x0 >= -1, name
            assert box.x1 <= across + 1, name
            assert box.y1 <= down + 1, name
        if name != "pipelines":
            axes = figure.axes[0].get_window_extent()
            assert axes.width > 0.6 * across, name
            assert axes.height > 150, name


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


PHONE = """<!doctype html><title>not measured</title><iframe width="390" height="6000" style="border:0" srcdoc="{}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument
  const root = page.documentElement
  const visible = [...page.querySelectorAll("section, figure svg, .box")].every(part => part.getBoundingClientRect().height > 20)
  document.title = `${{root.scrollWidth - root.clientWidth}} over, ${{page.querySelectorAll("svg").length}} plots, ${{visible}}`
}}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to render the page with")
@pytest.mark.parametrize(("scheme", "darker"), [(1, "ink"), (0, "paper")], ids=["light", "dark"])
def test_a_browser_renders_the_page_on_a_phone(report, tmp_path, scheme, darker):
    """In a frame, for a window has a least width; nothing but tables and curves scrolls sideways."""
    (tmp_path / "phone.html").write_text(PHONE.format(escape((report / "index.html").read_text())))
    options = "headless no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    command = [CHROMIUM, *(f"--{option}" for option in [*options.split(), "no-first-run"])]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'page.png'}",
        "--window-size=500,6000",
        f"--blink-settings=preferredColorScheme={scheme}",
    ]
    command += ["--dump-dom", (tmp_path / "phone.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>0 over, 3 plots, true</title>" in done.stdout
    picture = imread(tmp_path / "page.png")[10:, 10:390, :3].mean(axis=2)  # within the frame
    corner = picture[0, 0]
    assert corner < 0.2 if darker == "paper" else corner > 0.9
    assert picture.std() > 0.05


@pytest.mark.parametrize(("wrong", "shown"), [(60, False), (160, True)])
def test_a_majority_far_below_all_scores_is_left_to_the_legend(run_of, wrong, shown):
    run = run_of("singlestage", 1)  # of 408 rows, the majority has about 68 %, the teacher 87 %
    labels = run.final_predictions.labels
    predicted = [1 - label if row < wrong else label for row, label in enumerate(labels)]
    final = replace(run.final, score=1 - wrong / 408, predictions={"dev": Predictions(labels, predicted)})
    comparison = Comparison.of([replace(run, stages=[*run.stages[:-1], final])])
    figure = plots.draw_cost(comparison)
    assert (figure.axes[0].get_ylim()[0] < comparison.majority) == shown
    assert any("(below)" in text.get_text() for text in figure.legends[0].get_texts()) != shown
