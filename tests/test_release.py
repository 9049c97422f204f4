"""What a release has besides the packages: versions for development, an image, a workflow. Needs no container and no network."""

import re
import tomllib
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def settings(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


def test_workflow_checks_every_python(root: Path, settings: dict) -> None:
    yaml = pytest.importorskip("yaml", reason="needs the extra `dev`")
    workflow = yaml.safe_load((root / ".github/workflows/check.yml").read_text())
    jobs = workflow["jobs"]
    pythons = jobs["check"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]  # strings: as a number, 3.10 would be 3.1
    assert settings["project"]["requires-python"] == f">={pythons[0]}"
    named = re.findall(r"Python :: (3\.\d+)", str(settings["project"]["classifiers"]))
    assert named == pythons
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs["check"][0].startswith("make check ")
    called = {words[1] for lines in runs.values() for words in map(str.split, lines) if words[0] == "make"}
    assert called == {"check", "test-lowest", "dist"}
    assert called <= targets((root / "Makefile").read_text())
    for file in re.findall(r"-c (\S+?)\"", str(runs)):
        assert (root / file).is_file()
    actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert actions
    # a tag can be moved, a commit cannot
    assert [name for name in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name)] == []
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True]["push"]["branches"] == ["main"]  # YAML 1.1 reads the key "on" as true


def instructions(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_image_is_built_from_what_is_here(root: Path, settings: dict) -> None:
    lines = instructions((root / "Dockerfile").read_text())
    copied = [
        name for word, *rest in lines if word == "COPY" and "--from" not in rest[0] for name in rest[:-1]
    ]
    assert [name for name in copied if not (root / name).exists()] == []
    # what the wheel is made of
    packages = {
        pattern.rstrip("*") for pattern in settings["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    project = settings["project"]
    assert {*packages, "pyproject.toml", project["readme"], *project["license-files"]} == set(copied)
    # what reaches the builder: everything is left out but that
    ignored = [line[0] for line in instructions((root / ".dockerignore").read_text())]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)


def test_image_runs_the_command_without_root(root: Path, settings: dict) -> None:
    lines = instructions((root / "Dockerfile").read_text())
    words = [line[0] for line in lines]
    last = len(words) - words[::-1].index("FROM") - 1
    stage = {line[0]: line[1:] for line in lines[last:]}
    assert stage["USER"] not in (["root"], ["0"])
    assert words[last:].index("USER") < words[last:].index("ENTRYPOINT")
    assert stage["ENTRYPOINT"] == ['["gdposr"]']
    assert "gdposr" in settings["project"]["scripts"]
    assert {line[1] for line in lines if line[0] == "FROM"} == {"python:3.13-slim"}


def test_versions_for_development_satisfy_every_need(root: Path, settings: dict) -> None:
    """One version for each Python, inside the bounds, of all that `make setup` installs."""
    requirements = pytest.importorskip(
        "packaging.requirements", reason="needs packaging, which pytest brings"
    )
    makefile = (root / "Makefile").read_text()
    (extras,) = re.findall(r"^DEV_EXTRAS *= (\S+)$", makefile, flags=re.MULTILINE)
    text = (root / "requirements-dev.txt").read_text()
    assert "//" not in text, "versions alone, no addresses"
    pinned = [requirements.Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    project = settings["project"]
    wanted = [*project["dependencies"]]
    for extra in extras.split(","):
        wanted += project["optional-dependencies"][extra]
    for python in ("3.11", "3.12", "3.13"):
        here = {
            "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "os_name": "posix",
            "platform_system": "Linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
        }  # fmt: skip
        versions = {}
        for one in pinned:
            if one.marker is None or one.marker.evaluate(here):
                (version,) = one.specifier
                assert version.operator == "=="
                assert one.name not in versions
                versions[one.name] = version.version
        for need in map(requirements.Requirement, wanted):
            if need.marker is None or need.marker.evaluate(here | {"extra": ""}):
                assert need.specifier.contains(versions[need.name]), (
                    f"{need} on {python}: make lock renews it"
                )
