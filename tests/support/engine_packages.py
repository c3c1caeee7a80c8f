"""What pip leaves of an engine, without the engine: the metadata of its distribution and its folders."""

from __future__ import annotations

import importlib
from pathlib import Path


def install(site: Path, distribution: str, version: str, *packages: str) -> None:
    """Into a directory of sys.path. A package that is imported ends the test."""
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    for package in packages:
        path = site / package.replace(".", "/")
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text("raise AssertionError('imported')\n")
    importlib.invalidate_caches()


def install_nemo(site: Path, version: str = "2.7.3") -> None:
    install(site, "nemo-toolkit", version, "nemo", "nemo.collections", "nemo.collections.llm")


def install_bridge(site: Path, version: str = "0.6.2") -> None:
    """`megatron` is a namespace without __init__, which Megatron-Core shares."""
    install(site, "megatron-bridge", version, "megatron.bridge")
