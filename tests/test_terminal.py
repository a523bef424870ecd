"""Names and messages that try to command the terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from drawing import with_pages
from helpers import gaussian, store

EVIL = "a\x1b]0;TITLE\x07\x1b[2J\x9b31m\r\u202eb"
NAMES = [EVIL, f"[link=http://x]{EVIL}[/link]", "\x1b]8;;http://x\x07y"]


#: Commands one after the other in a process of their own, with a line of this mark before each.
MARK = "== next ==\r\n"
PROGRAM = """
import json, os, sys
from dlscale.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print("== next ==", flush=True)
    if arguments[0] == "cd":
        os.chdir(arguments[1])
        continue
    sys.argv = ["dlscale", *arguments]
    try:
        main()
    except SystemExit:
        pass
"""


def on_a_terminal(commands: list[list[str]], cwd: Path) -> list[str]:
    """What each of the commands writes to a terminal."""
    leader, follower = pty.openpty()
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": follower, "stderr": follower}
    with subprocess.Popen(program, cwd=cwd, env=with_pages(os.environ), **streams) as process:
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
    return written.decode(errors="replace").split(MARK)[1:]


def commands_with(name: str) -> list[list[str]]:
    """Files of this name in the current folder, and commands that meet it."""
    path = name.replace("/", "_") + ".zarr"
    store(Path(path), gaussian(40, 4), chunks=(40, 4))
    quoted = '"' + "".join(f"\\u{ord(character):04x}" for character in path) + '"'
    head = "kind: svd\nparams: {n_components: 2}\ncluster: threads\n"
    Path("found.yaml").write_text(head + f"input: {{matrix: {quoted}}}\n")
    Path("lost.yaml").write_text(head + f'input: {{matrix: "no-{quoted[1:]}}}\n')
    Path("key.yaml").write_text(head + f"{quoted}: 1\ninput: {{matrix: a}}\n")
    Path(f"{path}.yaml").write_text("kind: none\n")
    commands = [
        ["run", "found.yaml"],
        ["plan", "lost.yaml"],
        ["validate", "key.yaml"],
        ["validate", f"{path}.yaml"],
        ["info", path],
    ]
    return [*commands, ["status"], ["jobs"], ["logs"], ["status", path], ["info", path, path]]


def test_no_command_of_a_name_reaches_the_terminal(tmp_path: Path) -> None:
    commands: list[list[str]] = []
    for i, name in enumerate(NAMES):
        folder = tmp_path / str(i)
        folder.mkdir()
        with chdir(folder):
            given = commands_with(name)
        commands += [["cd", str(folder)], *given]
    for command, written in zip(commands, on_a_terminal(commands, tmp_path), strict=True):
        assert written.strip() or command[0] == "cd", command
        for sequence in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\u202e", "\r\u202e"):
            assert sequence not in written, command
    for i in range(len(NAMES)):
        (job,) = (tmp_path / str(i) / "dlscale-workspace" / "jobs").iterdir()
        for file in (job / "report.html", job / "log.txt", job / "events.jsonl", job / "state.json"):
            assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(file.read_text(encoding="utf-8")), file.name
