"""Names and messages that try to command the terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import gaussian, store

EVIL = "a\x1b]0;TITLE\x07\x1b[2J\x9b31m\r\u202eb"
NAMES = [EVIL, f"[link=http://x]{EVIL}[/link]", "\x1b]8;;http://x\x07y"]


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """What a command writes to a terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dlscale", *arguments]
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:
                break
            if not data:
                break
            written += data
        process.wait()
    os.close(leader)
    return written.decode(errors="replace")


@pytest.mark.parametrize("name", NAMES)
def test_no_command_of_a_name_reaches_the_terminal(name: str, tmp_path: Path) -> None:
    path = name.replace("/", "_") + ".zarr"
    store(tmp_path / path, gaussian(40, 4), chunks=(40, 4))
    quoted = '"' + "".join(f"\\u{ord(character):04x}" for character in path) + '"'
    head = "kind: svd\nparams: {n_components: 2}\ncluster: threads\n"
    (tmp_path / "found.yaml").write_text(head + f"input: {{matrix: {quoted}}}\n")
    (tmp_path / "lost.yaml").write_text(head + f'input: {{matrix: "no-{quoted[1:]}}}\n')
    (tmp_path / "key.yaml").write_text(head + f"{quoted}: 1\ninput: {{matrix: a}}\n")
    (tmp_path / f"{path}.yaml").write_text("kind: none\n")
    commands = [
        ["run", "found.yaml"],
        ["plan", "lost.yaml"],
        ["validate", "key.yaml"],
        ["validate", f"{path}.yaml"],
        ["info", path],
    ]
    commands += [["status"], ["jobs"], ["logs"], ["status", path], ["info", path, path]]
    for command in commands:
        written = on_a_terminal(*command, cwd=tmp_path)
        assert written.strip(), command
        for sequence in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\u202e", "\r\u202e"):
            assert sequence not in written, command
    (job,) = (tmp_path / "dlscale-workspace" / "jobs").iterdir()
    for file in (job / "report.html", job / "log.txt", job / "events.jsonl", job / "state.json"):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(file.read_text(encoding="utf-8")), file.name
