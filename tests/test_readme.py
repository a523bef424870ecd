"""What the README shows is what the program takes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from dlscale.batch.spec import MODELS, load_spec
from dlscale.cli import commands

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_shortest_job_of_every_kind_is_valid() -> None:
    block = re.search(r"```yaml\n(\{kind: svd.*?)```", README, re.DOTALL)
    assert block is not None
    assert {load_spec(yaml.safe_load(line)).kind for line in block[1].splitlines()} == set(MODELS)


def test_every_command_that_it_names_is_there() -> None:
    named = set(
        re.findall(r"(?<![\w/-])dlscale ([a-z]+)\b(?= |`|\n)", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)))
    )
    assert len(named) > 5
    assert named <= set(commands.commands)
