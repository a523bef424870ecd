"""The report: one HTML file that needs nothing else.

Everything is inside the page: styles, figures (SVG), pictures (PNG as data). It opens without a network, follows the
reader's light or dark setting, and prints.
"""

from __future__ import annotations

from dlscale.certificates import leaves_no_digit
from dlscale.report import answers, figures, lookahead, sections, words
from dlscale.report.markup import Markup, div, join, tag
from dlscale.report.record import JobRecord
from dlscale.report.sections import Job
from dlscale.report.style import STYLE

_STATES = {"succeeded": "good", "failed": "bad", "lost": "bad", "interrupted": "warn", "cancelled": "warn"}


def render(record: JobRecord) -> str:
    """Draw a job's report.

    Parameters
    ----------
    record : JobRecord
        The job as plain data. What is missing is left out of the page.

    Returns
    -------
    str
        A whole HTML document without references to anything outside it; all text of `record` is escaped.
    """
    job = Job(record)
    kind = answers.TELLINGS.get(record.kind)
    body = [
        _header(job),
        tag("p", {"class": "intro"}, answers.sentence(job)),
        sections.stopped(job),
        _tiles(job),
        sections.certificate(job),
        *(part(job) for part in (kind.answer if kind else ())),
        lookahead.lookahead(job),
        sections.timeline(job),
        sections.memory(job),
        sections.planned(job),
        sections.asked(job),
        sections.notes(job),
        sections.environment(job),
    ]
    head = tag(
        "head",
        None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", None, f"{record.name or record.id}: {record.kind} by dlscale"),
        tag("style", None, Markup(STYLE)),
    )
    page = tag("body", None, tag("main", None, *(part for part in body if part)))
    return "<!DOCTYPE html>\n" + tag("html", {"lang": "en"}, head, page) + "\n"


def _header(job: Job) -> Markup:
    record = job.record
    started = record.started
    if started is None:
        started = next((event.time for event in record.events if event.time is not None), None)
    facts = [record.id]
    if started is not None:
        facts.append(words.moment(started))
    if job.seconds is not None:
        facts.append(f"took {words.duration(job.seconds)}")
    state = tag("span", {"class": f"badge {_STATES.get(record.state, 'plain')}"}, record.state)
    title = div(
        "title",
        tag("p", {"class": "eyebrow"}, record.title or record.kind),
        tag("h1", None, record.name or record.id),
        tag("p", {"class": "facts-line"}, state, *(tag("span", None, fact) for fact in facts)),
    )
    checks = (record.certificate or {}).get("checks") or ()
    if not checks:
        return tag("header", None, title)
    n_passed = sum(bool(check["passed"]) for check in checks)
    doubt = any(leaves_no_digit(note) for note in record.notes)
    below = tag("figcaption", None, f"{n_passed} of {len(checks)} checks passed" + ("; no digit is sure" if doubt else ""))
    drawn = figures.seal("failed" if n_passed < len(checks) else "doubtful" if doubt else "passed", record.id)
    return tag("header", None, title, tag("figure", {"class": "sealed"}, drawn, below))


def _tiles(job: Job) -> Markup | None:
    shown = [
        div(
            "tile",
            tag("h3", None, tile.name),
            tag("p", {"class": "value"}, tile.value),
            tag("p", {"class": "below"}, tile.below),
            tile.bar,
        )
        for tile in answers.tiles(job)
    ]
    # The number of columns that leaves the fewest places of the last row empty.
    n_columns = min((4, 5, 3), key=lambda n: -len(shown) % n)
    return tag("section", {"class": f"tiles of-{n_columns}"}, join(shown)) if shown else None
