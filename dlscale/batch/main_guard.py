"""Scripts whose worker processes would run them again.

A worker process of a local cluster imports the script that started it. Without ``if __name__ == "__main__":`` around the call,
each worker would start the job once more, and the cluster would wait for workers that never come.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType

from dlscale.errors import SpecError


def require_main_guard(call: str) -> None:
    """Refuse a call from the unguarded part of the main script.

    Parameters
    ----------
    call : str
        Its name in the message.

    Raises
    ------
    SpecError
        Naming the line of the script, and what to write there.
    """
    frame: FrameType | None = sys._getframe(1)
    main = vars(sys.modules["__main__"])
    while frame is not None and not (frame.f_code.co_name == "<module>" and frame.f_globals is main):
        frame = frame.f_back
    script = main.get("__file__")
    if frame is None or script is None or not Path(script).is_file():
        return  # not from a script: a notebook, a prompt, a library
    if not _is_guarded(Path(script).read_text(encoding="utf-8", errors="replace"), frame.f_lineno):
        raise SpecError(
            f"{script}:{frame.f_lineno}: {call} starts worker processes, which import this script again; put the line under "
            '`if __name__ == "__main__":`, or use `cluster: threads`, which starts none.'
        )


def _is_guarded(source: str, line: int) -> bool:
    """Whether a line of a module stands under a condition on ``__name__``."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return True  # not Python as it is written: some other tool runs it
    around = (statement for statement in statements if statement.lineno <= line <= (statement.end_lineno or statement.lineno))
    return any(
        isinstance(statement, ast.If)
        and any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test))
        for statement in around
    )
