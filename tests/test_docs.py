"""The documentation works: commands are parsed, YAML is loaded, Python runs, links lead somewhere."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import bitkd
from bitkd import cli
from bitkd.commands.checkpoints import is_setting
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.models.encoder import read_spec, write_spec
from bitkd.pipeline.plan import check_settings
from bitkd.quant.layout import LAYOUTS
from bitkd.quant.table import ACTIVATIONS, WEIGHTS
from bitkd.stages.kinds import KINDS
from bitkd.stages.spec import TERMS
from bitkd.sweep.spec import read_sweep
from tests.test_architecture import FLOOR

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted((ROOT / "experiments").glob("*/RESULTS.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNCHECKED = re.compile(r"#\s*needs\b")
"""In a comment behind a command that is not bitkd's own: what a reader needs to run it."""


def blocks(language, pages=PAGES):
    """The pages' code blocks in a language, as test parameters."""
    found = [
        (page, [code for name, code in FENCE.findall(page.read_text(encoding="utf-8")) if name == language])
        for page in pages
    ]
    return [pytest.param(code, id=f"{page.name}-{i}") for page, codes in found for i, code in enumerate(codes, start=1)]


def commands(code):
    """The commands of a bash block, continued lines joined and loops unrolled."""
    lines = code.replace("\\\n", " ").splitlines()
    while lines:
        line = lines.pop(0).strip()
        loop = re.fullmatch(r"for (\w+) in (.+); do", line)
        if loop:
            end = lines.index("done")
            body, lines = lines[:end], lines[end + 1 :]
            for word in loop[2].split():
                yield from (re.sub(rf"\${{?{loop[1]}}}?", word, inner.strip()) for inner in body)
        elif line and not line.startswith("#"):
            yield line


def check_command(line):
    """Raise an error if a line of a bash block is not a command that works as written."""
    words = shlex.split(line, comments=True)
    if words[:3] == [".venv/bin/python", "-m", "bitkd"]:
        words[:3] = ["bitkd"]
    if words[0] in ("bitkd", ".venv/bin/bitkd"):
        check_bitkd(words[1:])
    elif words[0] == "make":
        check_make(words[1:])
    elif words[0] == ".venv/bin/pytest":
        assert all((ROOT / word.partition("::")[0]).exists() for word in words[1:] if not word.startswith("-")), line
    elif words[:2] == [".venv/bin/python", "-m"]:
        assert find_spec(words[2]), line
    else:
        assert UNCHECKED.search(line), f"'{line}' is checked by nothing; say what it needs in a comment: # needs …"


def check_bitkd(words):
    arguments = cli._parse(words)
    settings = getattr(arguments, "settings", [])
    if arguments.command in ("run", "plan", "config"):
        check_settings(load_config(settings))
    elif arguments.command == "augment":
        load_config(settings, require=("task",))
    elif arguments.command == "export":
        load_config(settings, require=())
    elif arguments.command in ("evaluate", "predict"):
        load_config([word for word in settings if is_setting(word) and not word.startswith("split=")], require=())
    elif arguments.command == "store":
        load_config(settings, require=())
    elif arguments.command == "sweep":
        spec = read_sweep(arguments.file, settings)
        given = {
            key: value.get("value", next(iter(value.get("values", [0]))))
            for key, value in spec.content["parameters"].items()
        }
        spec.config(given, check=True)
    else:
        assert arguments.command in ("compare", "power", "push", "benchmark", "throughput")


def check_make(words):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split())
    variables = dict(re.findall(r"^(\w+) \?= ?(.*)$", makefile, re.MULTILINE))
    given = dict(word.split("=", 1) for word in words if "=" in word)
    [target] = [word for word in words if "=" not in word]
    assert target in targets
    assert given.keys() <= variables.keys()
    variables |= given
    extra = shlex.split(variables["ARGS"])
    if target in ("multistage", "singlestage"):
        task, devices = variables["TASK"], variables["DEVICES"]
        check_bitkd(["run", f"pipeline={target}", f"task={task}", f"trainer.devices={devices}", *extra])
    elif target == "recipe":
        check_bitkd(["run", f"recipe={variables['NAME']}", f"task={variables['TASK']}", *extra])
    elif target == "sweep":
        check_bitkd(["sweep", variables["FILE"], *extra])
    elif target == "bench":
        assert (ROOT / "experiments" / "bench" / f"{variables['SUITE']}.py").is_file()


@pytest.fixture
def tables():
    """What a page registers is forgotten after it."""
    saved = [(table, dict(table)) for table in (KINDS, TERMS, WEIGHTS, ACTIVATIONS)]
    layouts = list(LAYOUTS)
    yield
    LAYOUTS[:] = layouts
    for table, rows in saved:
        table.clear()
        table.update(rows)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with what the commands read: the checkout's files, and the YAML files that the pages show."""
    for name in ("experiments", "docs", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    for parameter in blocks("yaml"):
        [code] = parameter.values
        if found := re.match(r"# ([\w-]+\.yaml)\b", code):
            (tmp_path / found[1]).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_are_accepted(code, checkout):
    for line in commands(code):
        check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_from_these_tests(page):
    """Commands stand in bash blocks; those inside a sentence name a command or target that exists."""
    text = page.read_text(encoding="utf-8")
    assert {language for language, _ in FENCE.findall(text)} <= {"bash", "yaml", "python", "mermaid", "text"}
    assert not [code for language, code in FENCE.findall(text) if language == "text" and re.search("bitkd [a-z]", code)]
    for command, name in re.findall(r"`(bitkd|make) ([a-z]\w*)[^`]*`", FENCE.sub("", text)):
        if command == "make":
            check_make([name])
        else:
            with pytest.raises(SystemExit, match="0"):
                cli._parse([name, "--help"])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("bitkd run task=demo", InputError),
        ("bitkd run task=demo pipeline=singlestage train.lrr=1", InputError),
        ("bitkd plan task=demo pipeline=singlestage --pdf", SystemExit),
        ("make tea", AssertionError),
        ("make compare TASKS=demo", AssertionError),
        ("make multistage TASK=nonsense", InputError),
        ("rm -rf runs  # clean", AssertionError),
    ],
)
def test_a_wrong_command_is_found(line, error, checkout):
    with pytest.raises(error):
        check_command(line)


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_is_loaded(code, checkout):
    name = re.match(r"# ([\w-]+\.yaml)\b", code)
    assert name, "a YAML block begins with its file's name in a comment"
    content = yaml.safe_load(code)
    if "stages" in content:
        group = "recipe" if "tasks" in content else "pipeline"
        check_settings(load_config(["task=demo", f"{group}={name[1]}"]))
    elif "task" in content:
        load_config(["pipeline=multistage", f"task={name[1]}"])
    else:
        read_sweep(name[1])


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")], ids=lambda page: page.name
)
def test_python_runs(page, checkout, tables, tiny_bert, tiny_tokenizer, tiny_task, monkeypatch):
    """A page's blocks run one after another, on tiny models and data; a pipeline is planned and not run."""

    def run(pipeline, *settings, **values):
        given = [f"pipeline={pipeline}", *settings, *(f"{key}={value}" for key, value in values.items())]
        check_settings(load_config(given))
        return SimpleNamespace(stages=[], folder=checkout, score=0.5, student=student)

    student = checkout / "finished"
    classifier = bitkd.new_classifier(tiny_bert, ["no", "yes"])
    spec = read_spec(classifier)
    spec.trained_head = True
    write_spec(classifier, spec)
    bitkd.save_student(classifier, student, tiny_tokenizer)
    (checkout / "models").mkdir()
    (checkout / "models" / "bert-base-uncased").symlink_to(tiny_bert)
    (checkout / "glue").symlink_to(tiny_task)
    (checkout / "corpus.txt").symlink_to(tiny_task / "corpus.txt")
    monkeypatch.setattr(bitkd, "run", run, raising=False)
    scope = {"__name__": "__main__"}
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, f"{page.name}", "exec"), scope)


def anchors(page):
    """The anchors of a page's headings, as forges make them."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *STUDIES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [
        page.name for page in (ROOT / "docs").iterdir() if page.name != "README.md" and f"({page.name})" not in index
    ]
    assert missing == []


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_layout_names_every_room_from_the_ground_up():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [layout] = [code for name, code in FENCE.findall(text) if name == "text"]
    package = layout.partition("bitkd/")[2].partition("\nconf/")[0]
    named = [word.rstrip("/").removesuffix(".py") for word in re.findall(r"\b(?!conf/)\w+(?:/|\.py)", package)]
    assert set(named) == set(FLOOR) - {"__main__", "__init__"}
    assert [FLOOR[room] for room in named] == sorted(FLOOR[room] for room in named)


def test_the_pilots_numbers_are_those_of_its_record():
    """The first page's table: each number stands in the study's row of the same arm."""
    rows = re.findall(
        r"^\| (\w+) \|(.+)\|$", (ROOT / "experiments/pilot/RESULTS.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    shown = re.findall(r"^\| (\w+) \| (0\.\d+ .+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 5
    for arm, cells in shown:
        recorded = {cell.strip() for name, row in rows if name == arm for cell in row.split("|")}
        assert {cell.strip() for cell in cells.split("|")} <= recorded, arm


def test_the_numbers_that_chose_the_default_are_those_of_their_record():
    recorded = re.findall(
        r"^\| (matrix|row|row_column|learned) \| (0\.\d+ ± \S+) \(2\) \| (0\.\d+ ± \S+) \(2\) \| .* \| \S+ \| (\S+) \| \S+ \|$",
        (ROOT / "experiments/quantizers/RESULTS.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    shown = re.findall(
        r"^\| [^|]+ \| (0\.\d+ ± \S+) \| (0\.\d+ ± \S+) \| (\d\S+) \|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [(sst2, sick, mib) for _, sick, sst2, mib in recorded] == shown
    assert len(shown) == 4


@pytest.mark.parametrize("script", sorted((ROOT / "docs").glob("*.s*")), ids=lambda script: script.name)
def test_scripts_are_valid(script):
    subprocess.run(["bash", "-n", script], check=True)
