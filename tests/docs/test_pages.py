"""README and docs are true: commands parse, settings load, links lead to files, examples run."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex

import pytest

from d3jax import compare, export, run
from d3jax.config.loading import describe, loads
from d3jax.config.study import StudyConfig
from d3jax.data.__main__ import main as data_main
from d3jax.examine.__main__ import parser as examine_parser
from d3jax.results.outcomes import ADDED, OUTCOMES
from d3jax.study.registries import REGISTRIES

from .pages import PAGES, ROOT, WRITTEN, blocks, commands, name_of

COMMANDS = [(name_of(path), line) for path in WRITTEN for line in commands(path)]
SETTINGS = [(name_of(path), text) for path in WRITTEN for text in blocks(path, "yaml")]


def test_the_concepts_page_explains_every_outcome():
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf8")
    assert all(f"| {outcome} | {meaning} |\n" in text for outcome, meaning in OUTCOMES.items())
    assert ADDED in text


def test_the_pages_have_commands_and_settings():
    assert len(COMMANDS) > 15 and len(SETTINGS) > 10


@pytest.mark.parametrize("words", [line for _, line in COMMANDS if "d3jax.run" in line])
def test_every_run_command_parses(words, monkeypatch, capsys):
    """A study is read and checked, not run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    words = words.replace("$SLURM_ARRAY_TASK_ID", "1").replace("/mnt/shared/", "runs/")
    arguments = [word for word in shlex.split(words)[3:] if word not in ("--distributed", "auto")]
    checked = arguments if "--list" in arguments else [*arguments, "--check"]
    if "experiments/cifar10_d3.yaml" in arguments:  # needs cifar10.npz
        assert run.main(checked) == 2
        said = capsys.readouterr().err
        assert "no such file, want an .npz" in said or "nothing was computed there" in said
        return
    try:
        assert run.main(checked) == 0
    except SystemExit as done:  # --help
        assert done.code == 0


EXPORTS = [line for _, line in COMMANDS if "d3jax.export" in line]


@pytest.mark.parametrize("words", [line for line in EXPORTS if "--dataset" in line])
def test_every_export_of_a_data_set_works(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    *arguments, out = shlex.split(words)[3:]
    assert export.main([*arguments, str(tmp_path / out)]) == 0
    assert (tmp_path / out).exists()


@pytest.mark.parametrize("words", [line for line in EXPORTS if "--dataset" not in line])
def test_every_export_command_is_understood(words, tmp_path, monkeypatch, capsys):
    """It fails at the model, which a clean checkout has not trained."""
    monkeypatch.chdir(ROOT)
    assert export.main([*shlex.split(words)[3:], "--workdir", str(tmp_path)]) == 2
    assert "is not finished" in capsys.readouterr().err


@pytest.mark.parametrize("words", [line for _, line in COMMANDS if "d3jax.examine" in line])
def test_every_examine_command_names_files_that_exist(words):
    """tests/examine/test_command.py runs one."""
    options = examine_parser().parse_args(shlex.split(words)[3:])
    given = (options.model, options.data, options.samples, options.inputs)
    assert all((ROOT / path).exists() for path in given if path)


@pytest.mark.parametrize(
    "words", [line for _, line in COMMANDS if re.search(r"d3jax\.(report|compare)", line)]
)
def test_every_report_and_compare_command_is_understood(words, tmp_path, monkeypatch, capsys):
    """It fails at the run folder, which a clean checkout does not have."""
    monkeypatch.chdir(tmp_path)
    module = {"d3jax.report": "d3jax.report.__main__"}.get(shlex.split(words)[2], "d3jax.compare")
    assert importlib.import_module(module).main(shlex.split(words)[3:]) == 2
    assert "d3jax: runs/" in capsys.readouterr().err


@pytest.mark.parametrize("words", [line for _, line in COMMANDS if "d3jax.data" in line])
def test_every_data_command_is_understood(words, tmp_path, monkeypatch, capsys):
    """It fails at the archive, which is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = shlex.split(words)[3:]
    more = [] if "--from" in arguments else ["--from", "nowhere"]
    assert data_main([*arguments, *more]) == 2
    assert "want the folder that holds" in capsys.readouterr().err


@pytest.mark.parametrize(("page", "text"), SETTINGS)
def test_every_yaml_block_is_a_study(page, text):
    assert isinstance(loads(text, registries=REGISTRIES, origin=page), StudyConfig)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_to_files_lead_to_files(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    files = [link for link in links if "://" not in link and link != "../notebook.md"]
    assert [link for link in files if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_named_files_exist(path):
    text = path.read_text(encoding="utf8")
    named = re.findall(r"`((?:d3jax|experiments|tests|benchmarks|docs)/[\w./-]+)`", text)
    own = (
        "stripes",
        "new_head",
        "far.py",
        "too_sure.py",
        "weight_norm",
        "noise.py",
    )  # what the page adds
    named = [name for name in named if not any(word in name for word in own)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_flag_exists(path):
    """Flags of d3jax's commands are options or settings of a study."""
    modules = [importlib.import_module(f"d3jax.{name}.__main__") for name in ("data", "examine")]
    programs = [run, compare, export, *modules]
    sources = "".join(map(inspect.getsource, programs))
    known = {name for name, _, _ in describe(StudyConfig)}
    known |= set(re.findall(r'"--([\w-]+)"', sources)) | {"help"}
    lines = commands(path)
    named = {flag for line in lines for flag in re.findall(r"(?<![\w-])--([a-z_][\w.]*)", line)}
    known |= {"dataset.path"}  # of the data set, not of every study
    assert {re.split(r"\.\d", name)[0] for name in named} <= known


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word for path in WRITTEN for word in re.findall(r"`make ([\w-]+)`", path.read_text("utf8"))
    }
    assert named and named <= targets


def test_the_readme_has_at_most_900_words():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text("utf8"), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    words = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)).split()
    assert 300 < len(words) <= 900


@pytest.mark.parametrize("registry", sorted(REGISTRIES))
def test_every_component_has_a_row_in_the_methods_page_and_in_the_readme(registry):
    methods = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf8")
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    names = sorted(set(REGISTRIES[registry]) - {"small"})  # "small" is a model of the tests
    assert [name for name in names if f"\n| `{name}` |" not in methods] == []
    assert [name for name in names if f"`{name}`" not in readme] == []


EXAMPLES = [path for path in WRITTEN[1:] if blocks(path, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_python_blocks_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "".join(blocks(path, "python"))
    exec(compile(code, path.name, "exec", dont_inherit=True), {})  # noqa: S102
    for acc in re.findall(r"ACC (\d\.\d+)  ASR", capsys.readouterr().out):
        assert float(acc) > 0.85


@pytest.mark.slow
def test_the_readmes_example_repairs_the_model(capsys):
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec", dont_inherit=True), {})  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    (acc, asr), (acc_after, asr_after) = [
        map(float, re.search(r"ACC (\S+)  ASR (\S+)", line).groups()) for line in printed
    ]
    assert acc > 0.9 and asr > 0.9 and asr_after < 0.1 and acc_after > acc - 0.05


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_says_how_to_get_its_data_and_what_is_published(path):
    lines = path.read_text(encoding="utf8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "Command:" in header and "python -m d3jax.run" in header
    assert re.search("[Pp]ublished|Paper:", header)
    if any(line.strip().startswith(("path: cifar10", "path: fashion")) for line in lines):
        assert "python -m d3jax.data" in header
