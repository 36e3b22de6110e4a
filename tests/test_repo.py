"""The tree itself: small, portable, free of traces of the machine it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_BYTES = 1_000_000
#: Absolute paths of a machine, written in two parts so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w./}$~])/(?:" + "work|home|root|Users|mnt|workspace" + r")/[\w.]")
INDEX_HOST = re.compile(r"(?:files\.pythonhosted|pypi\.org/simple|/simple/?[\"'\s]|extra-index|index-" + "url)")
LOCK_FILES = {"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock", "package-lock.json", "Cargo.lock"}


def _tracked() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _texts() -> list[tuple[Path, str]]:
    texts = []
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            texts.append((path.relative_to(ROOT), data.decode()))
    return texts


def test_no_large_files() -> None:
    large = {p.name: p.stat().st_size for p in _tracked() if p.stat().st_size > MAX_BYTES}
    assert large == {}


def test_no_lock_files() -> None:
    assert [p for p in _tracked() if p.name in LOCK_FILES] == []


@pytest.mark.parametrize("pattern", [MACHINE_PATH, INDEX_HOST], ids=["machine paths", "package indexes"])
def test_no_traces_of_a_machine(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in _texts()
        if path != Path("tests/test_repo.py")
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_patterns_find_what_they_are_for() -> None:
    assert MACHINE_PATH.search("open('/ho" + "me/ada/x')")
    assert not MACHINE_PATH.search("https://example.org/home/x")
    assert INDEX_HOST.search('url = "https://host.example/root/simple' + '/"')


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path}: {target}"
        for path, text in _texts()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:]+)\)", text)
        if not (ROOT / path.parent / target).exists()
    ]
    assert broken == []


def test_text_is_clean() -> None:
    for path, text in _texts():
        if path.name == "LICENSE" or not text:
            continue
        # Lines of CSV end in CR LF by RFC 4180, and so Python writes them.
        assert "\r" not in text or path.suffix == ".csv", path
        assert text.endswith("\n"), path
        assert not [line for line in text.splitlines() if line != line.rstrip()], path
