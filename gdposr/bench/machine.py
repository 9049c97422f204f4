"""Describes the machine of a measurement: processor, instruction sets that matter for inference, memory, versions."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# Instruction sets that decide which kernels an inference library picks, as /proc/cpuinfo and sysctl name them.
X86_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM_FLAGS = ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve")
# Distributions whose versions a report states.
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "coremltools", "ncnn", "pillow")


def describe_machine() -> dict[str, Any]:
    """The machine as a JSON-ready dictionary."""
    from runtime.backends.devices import usable_processors

    model, flags = _processor()
    wanted = ARM_FLAGS if platform.machine().lower() in ("arm64", "aarch64") else X86_FLAGS
    return {
        "cpu": model or platform.processor() or "unknown",
        "cpu_flags": {flag: flag in flags for flag in wanted},
        "cores": usable_processors(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{_system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def peak_memory_mb() -> float | None:
    """The most memory that this process has held so far, in 10^6 bytes. None if the system does not tell.

    On Linux from /proc, because getrusage there also counts the parent process.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) / 1e6


def _system() -> str:
    """The system's name. On a Mac with its version, which decides what Core ML can do."""
    version = platform.mac_ver()[0]
    return f"macOS {version}" if version else platform.system()


def _processor() -> tuple[str, set[str]]:
    """Model name and instruction-set flags. Empty if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return _sysctl()
    fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", ""), set(fields.get("flags", fields.get("features", "")).split())


def _sysctl() -> tuple[str, set[str]]:
    if sys.platform != "darwin":
        return "", set()
    names = {
        "FEAT_DotProd": "asimddp",
        "FEAT_FP16": "asimdhp",
        "FEAT_I8MM": "i8mm",
        "FEAT_BF16": "bf16",
        "AdvSIMD": "asimd",
    }
    command = [
        "sysctl",
        "machdep.cpu.brand_string",
        "machdep.cpu.features",
        "machdep.cpu.leaf7_features",
        "hw.optional",
    ]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "", set()
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    words = f"{fields.get('machdep.cpu.features', '')} {fields.get('machdep.cpu.leaf7_features', '')}".lower().split()
    flags = {
        names[leaf]
        for key, value in fields.items()
        if value == "1" and (leaf := key.rpartition(".")[2]) in names
    }
    return fields.get("machdep.cpu.brand_string", ""), flags | set(words)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
