"""What the README and the documentation show is what the program takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dlscale.batch.kinds import KINDS
from dlscale.batch.spec import load_spec
from dlscale.cli.main import commands
from dlscale.declaration.kind import Kind

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]


def test_the_job_files_shown_are_those_of_the_declared_kinds() -> None:
    block = re.search(r"```yaml\n(\{kind: svd.*?)```", README, re.DOTALL)
    assert block is not None
    lines = block[1].splitlines()
    assert lines == [kind.example for kind in KINDS.values() if kind.example in lines]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_shortest_job_of_every_kind_is_valid(kind: Kind) -> None:
    assert load_spec(yaml.safe_load(kind.example)).kind == kind.name


def test_every_command_that_is_named_is_there() -> None:
    scripts = "\n".join(block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    named = set(re.findall(r"(?<![\w/-])dlscale ([a-z]+)\b(?= |`|\n)", scripts))
    assert len(named) > 5
    assert named <= set(commands.commands)


def test_every_page_that_is_linked_is_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:\s]+)[^):]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_reference_of_the_job_file_is_that_of_its_schema() -> None:
    written = subprocess.run(
        [sys.executable, "-c", "import job_file_reference as page; print(page.reference(), end='')"],
        cwd=ROOT / "docs", capture_output=True, text=True, check=True,
    )  # fmt: skip
    page = (ROOT / "docs" / "job-file-reference.md").read_text(encoding="utf-8")
    assert page == written.stdout, "write it again: python docs/job_file_reference.py"
