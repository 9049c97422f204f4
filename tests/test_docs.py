"""The front door: a README of two screens, and pages whose links, paths, options and figures hold."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

README_LINES = 110
NAMED = re.compile(
    r"`((?:runtime|training|calibration|export|gdposr|tools|tests|examples|docs)/[\w./-]*)`"
)  # a path in a sentence; "NAME" stands for one to be chosen
OPTIONS = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def pages(root: Path) -> list[Path]:
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def test_readme_stays_short(root: Path) -> None:
    lines = (root / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES


def test_links_lead_somewhere(root: Path) -> None:
    for page in pages(root):
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        missing = [one for one in targets if not one.startswith("http") and not (page.parent / one).exists()]
        assert not missing, f"{page.name} links to {missing}"


def test_every_page_is_reached_from_the_readme(root: Path) -> None:
    text = (root / "README.md").read_text()
    unlinked = [page.name for page in pages(root)[1:] if f"{page.name})" not in text]
    assert not unlinked


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_exist(root: Path, name: str) -> None:
    named = [path for path in NAMED.findall((root / name).read_text()) if "NAME" not in path]
    assert named
    assert [path for path in named if not (root / path).exists()] == []


def test_tree_names_folders_that_exist(root: Path) -> None:
    text = (root / "README.md").read_text()
    tree = text[text.index("## The tree") :].split("```")[1]
    package = ""
    for line in tree.strip().splitlines():
        folder = line.split()[0]
        package = package if line.startswith(" ") else folder
        place = root / package if folder == package else root / package / folder
        assert place.is_dir(), line


def test_no_page_names_a_folder_of_one_machine(root: Path) -> None:
    for page in [*pages(root), *root.glob("examples/*/README.md"), root / "training" / "RUNBOOK.md"]:
        text = page.read_text()
        assert "../shared" not in text, page
        assert not re.search(r"(?<![\w.])/(work|root|home)/", text), page


def test_options_page_names_options_that_exist(root: Path, gdposr) -> None:
    text = (root / "docs" / "options.md").read_text()
    part = text[text.index("## gdposr upscale") : text.index("## Exit codes")]
    known = OPTIONS.findall(gdposr("upscale", "--help")[1])
    assert set(OPTIONS.findall(part)) == set(known) - {"--help", "--out"}


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the shell blocks of a page, with the variables that a line of it has set."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    variables: dict[str, str] = {}
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        full = re.sub(r"\$([A-Z]+)", lambda name: variables.get(name[1], name[0]), line)
        words = shlex.split(full, comments=True)
        if len(words) == 1 and (setting := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
            variables[setting[1]] = setting[2]
        elif words:
            found.append(words)
    return found


def stage_of(words: list[str]) -> tuple[str, ...]:
    """(module, stage) of what accelerate or torchrun starts; the stage is missing if the module has only one."""
    k = words.index("-m") + 1
    return tuple(words[k : k + 2]) if not words[k + 1].startswith("-") else (words[k],)


@pytest.mark.parametrize("name", ["training/RUNBOOK.md", "docs/training.md", "docs/blind.md", "docs/sd21.md"])
def test_commands_have_the_options_and_settings_that_they_are_given(
    root: Path, gdposr, need, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    need("torch", "accelerate")
    from export.student.kinds import KINDS
    from training.settings import with_settings
    from training.stages.presets import PRESETS

    presets = PRESETS | {stage: kind.presets for stage, kind in KINDS.items()}
    checked = 0
    for words in commands(root / name):
        options = {word for word in words if word.startswith("--")}
        if words[0] == "gdposr":
            verbs = words[1:3] if words[1] in ("train", "blind", "coreml") else words[1:2]
            known = gdposr(*verbs, "--help")[1]
        elif words[:2] == ["python", "-m"]:
            with pytest.raises(SystemExit):
                import_module(words[2]).main(["--help"])
            known = capsys.readouterr().out
        elif words[0] in ("accelerate", "torchrun"):
            module, *stage = stage_of(words)
            with pytest.raises(SystemExit):
                import_module(module).main([*stage, "--help"])
            known = capsys.readouterr().out
            options -= {"--num_processes", "--nproc_per_node"}
        else:
            continue
        checked += 1
        assert options <= set(OPTIONS.findall(known)), f"{name}: {shlex.join(words)}"
        values = {
            key: [value for k, word in enumerate(words) if word == key for value in words[k + 1 : k + 2]]
            for key in options
        }
        for stage in presets.keys() & set(words):
            preset = values.get("--preset", ["pocket"])[0]
            with_settings(presets[stage][preset], values.get("--set", []))
        if words[1] == "upscale" and {"--samples", "-o"} <= set(
            words
        ):  # more than one picture needs a folder
            assert words[words.index("-o") + 1].endswith("/"), f"{name}: {shlex.join(words)}"
    assert checked


def test_small_table_repeats_the_long_one(root: Path) -> None:
    """The README's figures are those of docs/figures.md."""
    figures = (root / "docs" / "figures.md").read_text().splitlines()

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]

    rows = {cells(line)[0]: cells(line) for line in figures if line.startswith("|")}
    readme = {
        cells(line)[0]: cells(line)
        for line in (root / "README.md").read_text().splitlines()
        if line.startswith("|")
    }
    for short, long in (
        ("bicubic", "bicubic"),
        ("realesr-general-x4v3 (ncnn)", "the peer (ncnn)"),
        ("**gdposr INT8**, the default on a CPU",) * 2,
    ):
        quality, size = rows[long][1:5], rows[long][7:9]
        assert readme[short][1:] == quality + size
