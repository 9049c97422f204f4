"""An ARM64 Python without an ARM machine, for `make verify-arm`: Debian's packages and PyPI's wheels unpacked into one folder.

Nothing is installed, and no root rights are needed. apt-get and pip only download, and the emulator is started by its path.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from runtime.errors import GdposrError

# Debian's release: its Python is 3.11, the oldest that the runtime supports.
SUITE: Final = "bookworm"
# Debian's server, and the keys that its lists are signed with.
MIRROR: Final = "http://deb.debian.org/debian"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Packages of the emulated Python, with all that they need.
DEBIAN: Final = (
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1",
    "libcrypt1", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal",
)  # fmt: skip
# Package of the emulator, for this machine's architecture.
EMULATOR: Final = "qemu-user-static"
# Under QEMU 7.2, 1.32.0 ends in a segmentation fault when it is imported, right after it reads the host's caches in /sys.
WHEELS: Final = ("onnxruntime==1.27.0", "numpy==2.4.6", "pillow==13.0.0")
# Tags of wheels for aarch64 that run on that release's glibc, the newest first.
PLATFORMS: Final = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


class RootError(GdposrError):
    """The ARM root cannot be made here."""


def prepare(folder: Path, machine: str, mirror: str = MIRROR) -> None:
    """Make the root in `folder`, unless it is there already. machine: the host's, as `platform.machine` names it.

    folder gets root/ (Debian's files), site/ (the wheels) and qemu/. RootError: apt-get, pip or dpkg missing or failing.
    """
    done, wanted = folder / "done.json", digest(mirror)
    if machine != "x86_64":
        raise RootError(
            f"expected a host of x86_64, got {machine}: on an ARM machine `make test` itself is the proof"
        )
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == wanted:
        return
    need_programs()
    for name in ("root", "site", "qemu", "debs", "wheels"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    download_debian(folder, "arm64", DEBIAN, folder / "debs", mirror)
    download_debian(folder, "amd64", (EMULATOR,), folder / "qemu", mirror)
    for package in sorted((folder / "debs").glob("*.deb")):
        run(["dpkg", "-x", str(package), str(folder / "root")], "unpack a Debian package")
    for package in sorted((folder / "qemu").glob("*.deb")):
        run(["dpkg", "-x", str(package), str(folder / "qemu")], "unpack the emulator")
        package.unlink()
    run(pip_command(folder / "wheels"), "download the wheels for aarch64")
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    done.write_text(json.dumps(wanted), encoding="utf-8")


def digest(mirror: str) -> str:
    """A digest of everything that goes into the root, so that an outdated root is made anew."""
    parts = [SUITE, mirror, *DEBIAN, EMULATOR, *WHEELS, *PLATFORMS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def need_programs() -> None:
    """RootError if a program or Debian's keys are missing."""
    missing = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
    if missing:
        raise RootError(
            f"expected Debian's {' and '.join(missing)} to download and unpack packages, got a system without: "
            "run it on Debian or Ubuntu, or in a container of one"
        )
    if not KEYRING.exists():
        raise RootError(f"expected Debian's keys in {KEYRING}, got none: apt install debian-archive-keyring")


def download_debian(
    folder: Path,
    architecture: str,
    packages: tuple[str, ...],
    into: Path,
    mirror: str,
) -> None:
    """Download packages of one architecture, with separate lists, so that the host's apt does not change.

    folder: for the lists.
    architecture: Debian's name of the architecture.
    packages: their names.
    into: folder for the packages.
    mirror: address of a Debian mirror.
    """
    state = folder / "apt" / architecture
    (state / "state/lists/partial").mkdir(parents=True, exist_ok=True)
    (state / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(
        f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n", encoding="utf-8"
    )
    apt = ["apt-get", "-q", *apt_options(state.resolve(), architecture)]
    run([*apt, "update"], f"read the lists of {mirror}")
    run([*apt, "download", *packages], f"download {architecture} packages from {mirror}", into)


def apt_options(state: Path, architecture: str) -> list[str]:
    """Options that make apt-get use only the lists and sources in `state`."""
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",  # no other user needs to read the folder
        "Acquire::Retries": "2",
        "APT::Update::Error-Mode": "any",  # else a mirror that cannot be reached is a warning
        "Dir::State": str(state / "state"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
        "Dir::Etc::SourceList": str(state / "sources.list"),
        "Dir::Etc::SourceParts": "-",
    }
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def pip_command(into: Path) -> list[str]:
    """The pip command that downloads wheels for another machine."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
        "--python-version", "3.11", "--implementation", "cp", *platforms, "--dest", str(into), *WHEELS,
    ]  # fmt: skip


def run(command: list[str], purpose: str, folder: Path | None = None) -> None:
    """Run a program. RootError with its last lines if it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if not line.startswith("W")]
        raise RootError(
            f"{command[0]} could not {purpose} (exit code {result.returncode}): {' '.join(lines[-3:])}; "
            "check the connection and the proxy, or name another mirror with --mirror"
        )


def emulated(folder: Path, processor: str, arguments: list[str], tree: Path, log: Path) -> list[str]:
    """The command that runs the ARM Python with some arguments.

    folder: with QEMU, the root and the site packages.
    processor: QEMU's name of the one to emulate.
    arguments: of Python.
    tree: the folder of `runtime`.
    log: file in which QEMU writes the translated instructions.
    """
    root, site = (folder / "root").resolve(), (folder / "site").resolve()
    return [
        str(folder.resolve() / "qemu/usr/bin/qemu-aarch64-static"), "-cpu", processor, "-L", str(root),
        "-d", "in_asm", "-D", str(log.resolve()),
        "-E", f"PYTHONHOME={root / 'usr'}", "-E", f"PYTHONPATH={site}:{tree.resolve()}",
        str(root / "usr/bin/python3.11"), *arguments,
    ]  # fmt: skip
