"""What a notebook shows of a job: how far it is, how it ended, its report."""

from __future__ import annotations

import html
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlscale.batch.jobs.progress import Follower, progress_words
from dlscale.batch.prepare import Prepared
from dlscale.batch.remote.opening import job_in
from dlscale.batch.reporting import read_record, write_report
from dlscale.engine.events import Event, StateChanged
from dlscale.report import words
from dlscale.report.answers import key_numbers
from dlscale.report.markup import Markup, escape, tag
from dlscale.report.sections import Job as Told

_REFRESH_SECONDS = 0.25


@dataclass(frozen=True)
class ReportPage(os.PathLike[str]):
    """The report of a job: a path, and in a notebook the page itself.

    Parameters
    ----------
    path : Path
        One HTML file that needs nothing else.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe title="Report" sandbox="" width="100%" height="800" style="border: 1px solid #8886" srcdoc="{page}"></iframe>'
        )


def report_page(folder: Path) -> ReportPage:
    """The report of the job in a folder, drawn anew (SpecError if that is not possible)."""
    return ReportPage(write_report(job_in(folder)))


def card(folder: Path) -> Markup:
    """A job in a few lines: state, time, what it found, its checks."""
    record = read_record(job_in(folder), drawn=False)
    lines = [("state", f"{record.state} after {words.duration(record.seconds or 0.0)}")]
    lines += [(tile.name, f"{tile.value} {tile.below}".strip()) for tile in key_numbers(Told(record))]
    for check in (record.certificate or {}).get("checks", ()):
        lines.append(("check passed" if check["passed"] else "check FAILED", str(check["meaning"])))
    lines += [("note", str(note)) for note in record.notes]
    lines += [(name, value) for name, value in (("reason", record.reason), ("result", record.result)) if value]
    rows = [tag("tr", None, tag("th", {"style": "text-align: left"}, name), tag("td", None, value)) for name, value in lines]
    return tag("table", None, tag("caption", None, tag("b", None, record.id), f" ({record.kind})"), *rows)


def notebook_progress(prepared: Prepared) -> NotebookProgress | None:
    """A bar, where this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return NotebookProgress(prepared) if hasattr(shell, "kernel") else None


class NotebookProgress:
    """A listener that keeps a bar in the notebook's output up to date.

    Parameters
    ----------
    prepared : Prepared
    """

    def __init__(self, prepared: Prepared) -> None:
        from IPython.display import display

        self.name = prepared.name
        self.follower = Follower(prepared.plan.flops, len(prepared.plan.worker_steps))
        self._lock, self._shown = threading.Lock(), 0.0
        show: Any = display
        self._handle = show(self, display_id=True)

    def __call__(self, event: Event) -> None:
        self.follower(event)
        with self._lock:
            if isinstance(event, StateChanged) or time.monotonic() - self._shown > _REFRESH_SECONDS:
                self._shown = time.monotonic()
                self._handle.update(self)

    def _repr_html_(self) -> str:
        progress = self.follower.progress()
        bar = tag("progress", {"max": "1", "value": f"{progress.fraction:.4f}"})
        return bar + escape(f" {self.name}: {progress_words(progress, runs=True)}")

    def __repr__(self) -> str:
        return f"{self.name}: {progress_words(self.follower.progress(), runs=True)}"
