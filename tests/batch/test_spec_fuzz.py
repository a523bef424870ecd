"""Job files as damage and strangers make them: taken, or refused in words; at once, and in little memory.

``DLSCALE_FUZZ_FILES=2000 pytest -n 0 tests/batch/test_spec_fuzz.py`` is the long run.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dlscale.batch.document import parse_scalar, read_document
from dlscale.batch.generate import parse_generate
from dlscale.batch.spec import load_spec
from dlscale.errors import DlscaleError, SpecError

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
N_FILES = int(os.environ.get("DLSCALE_FUZZ_FILES", "150"))
SECONDS = 5.0

#: What is put in the place of a word, between two of them, or before a line.
PIECES = [
    "010", "0o10", "0x1F", "0b1", "1_000", "1:30", "+5", ".5", "5.", "-0", "1e999", ".inf", "-.INF", ".nan", "9" * 5000,
    "-" + "9" * 30, "~", "null", "yes", "No", "on", "true", "TRUE", "''", '"\\0"', '"\\ud800"', '"\\U00110000"', '"\\x1b[2J"',
    "é" * 300, "x" * 5000, "!!int abc", "!!binary x", "!!python/object/apply:os.system [ls]", "!x y", "! 5", "&a b", "*a",
    "<<: {a: 1}", "? x", "? [1, 2]\n: 3", "[" * 50, "{" * 50, "]", "}", "- ", "- - - - ", "%YAML 1.1", "%TAG ! x", "---", "...",
    "|", ">-", "@", "`", "\t", "\r", "\x00", "\x85", "\ufeff", "#", ": ", ",", "'", '"', "[1, 2", "{a: b}", "[[1], 2]",
    "{1: 2, '1': 3}", "2024-01-01", "tcp://10.0.0.1:1", "4GB", "1e400GB", "9" * 400 + "GB", "cluster: {memory: 1}", "params: 3",
    "kind: lu", "kind: [svd]", "input: {matrix: {import: 3}}", "name: a\nname: b", "layers: [{}]",
]  # fmt: skip


def mutate(text: str, source: random.Random) -> str:
    """A few changes of a job file: characters, words, lines and pieces that mean something to YAML."""
    for _ in range(source.randint(1, 4)):
        place, other = sorted((source.randrange(len(text) + 1), source.randrange(len(text) + 1)))
        words = [index for index, character in enumerate(text) if character in " \n[{,:"] or [0]
        word = source.choice(words) + 1
        end = min((text.find(mark, word) for mark in "\n,]}" if text.find(mark, word) >= 0), default=len(text))
        choice = source.randrange(7)
        if choice == 0:
            text = text[:place] + chr(source.choice([0, 9, 10, 27, 34, 39, 58, 91, 123, 133, 233, 0xD7FF, 0xFEFF])) + text[place:]
        elif choice == 1:
            text = text[:place] + text[min(other, place + 20) :]
        elif choice == 2:
            text = text[:place] + text[place : place + 60] * source.randint(2, 30) + text[place + 60 :]
        elif choice == 3:
            text = text[:word] + " " + source.choice(PIECES) + text[word:]
        elif choice == 4:
            text = text[:word] + " " + source.choice(PIECES) + text[end:]
        elif choice == 5:
            lines = text.split("\n")
            lines.insert(source.randrange(len(lines) + 1), source.choice(PIECES))
            text = "\n".join(lines)
        else:
            lines = text.split("\n")
            source.shuffle(lines)
            text = "\n".join(lines)
    return text


@pytest.mark.timeout(0 if N_FILES > 500 else 120)
def test_mutated_job_files_are_taken_or_refused_in_words(tmp_path: Path) -> None:
    source, path, texts = random.Random(20), tmp_path / "job.yaml", [job.read_text() for job in JOBS]
    taken = 0
    for index in range(N_FILES):
        text = mutate(source.choice(texts), source)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        began = time.process_time()
        try:
            load_spec(path)
            said, taken = "taken", taken + 1
        except DlscaleError as error:
            said = str(error)
        assert said.strip(), index
        assert time.process_time() - began < SECONDS, (index, text[:500])
    assert 0 < taken < N_FILES
    print(f"{N_FILES} files: {taken} taken, {N_FILES - taken} refused in words")


@pytest.mark.parametrize("text", PIECES)
def test_any_piece_as_a_value_is_taken_or_refused(text: str) -> None:
    for template in ("kind: svd\ninput: {{matrix: a.zarr}}\nparams: {{n_components: {}}}\n", "kind: svd\ninput: {{matrix: {}}}\n"):
        with suppress(SpecError):
            load_spec(template.format(text))
    with suppress(SpecError):
        parse_scalar(text, "--set x")
    with suppress(SpecError):
        parse_generate(read_document(f"shape: {text}\nspectrum: {text}\n"))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 900_000,
        "- " * 450_000,
        "a: [" + "1," * 450_000 + "1]",
        "\n".join(f"k{index}: {index}" for index in range(80_000)),
        "a: '" + "x" * 900_000,
        "a: " + "9" * 900_000,
        "{a: " * 200_000,
        "? " * 400_000,
        "kind: svd\ninput: {matrix: a}\n" + "\n".join(f"key{index}: 1" for index in range(20_000)),
        "kind: svd\ninput: {matrix: a}\nparams:\n" + "\n".join(f"  n_component{index}: 1" for index in range(20_000)),
    ],
    ids=[
        "brackets",
        "dashes",
        "a list",
        "keys",
        "a quotation",
        "a number",
        "braces",
        "question marks",
        "unknown keys",
        "unknown params",
    ],
)
def test_a_megabyte_of_anything_is_refused_soon(text: str) -> None:
    began = time.process_time()
    with pytest.raises(SpecError):
        load_spec(text + "\n")
    assert time.process_time() - began < 30.0
