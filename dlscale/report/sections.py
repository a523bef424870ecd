"""Sections that every job's report has, whatever its kind; each returns None when it has nothing to show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from dlscale.certificates import leaves_no_digit
from dlscale.engine.events import Saved, StateChanged, StepFinished, Warned
from dlscale.report import figures, running, words
from dlscale.report.markup import NOTHING, Markup, div, join, tag
from dlscale.report.record import STOPPED, JobRecord
from dlscale.report.timeline import Timeline, folded, read_timeline

#: Events listed at the end of the page; blocks and memory are in the figures.
_MOST_EVENTS = 200
_MOST_PASSES = 60


@dataclass(frozen=True, eq=False)
class Job:
    """A record with what is derived from its events, once."""

    record: JobRecord

    @cached_property
    def timeline(self) -> Timeline | None:
        return read_timeline(self.record.events)

    @property
    def seconds(self) -> float | None:
        """Wall time; the running time of its events where the record does not say."""
        return self.record.seconds if self.record.seconds is not None else (self.timeline.seconds if self.timeline else None)


def section(title: str, lead: str, *children: str) -> Markup:
    """A titled part of the page with one sentence on how to read it."""
    intro = [tag("p", {"class": "lead"}, lead)] if lead else []
    return tag("section", None, tag("h2", None, title), *intro, *children)


def pair(*figures_: Markup) -> Markup:
    """Figures beside each other, below each other on a narrow page."""
    return div("pair", *(tag("figure", None, figure) for figure in figures_))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, style: str = "") -> Markup:
    """A table; the first column is its row's name, the others are numbers."""
    header = tag("tr", None, *(tag("th", {"scope": "col"}, cell) for cell in head))
    body = [tag("tr", None, tag("th", {"scope": "row"}, row[0]), *(tag("td", None, cell) for cell in row[1:])) for row in rows]
    return div("wide", tag("table", {"class": style}, tag("thead", None, header), tag("tbody", None, *body)))


def stopped(job: Job) -> Markup | None:
    """Why the job has no answer, and how to go on."""
    record = job.record
    if record.state == "succeeded":
        return None
    if record.state not in STOPPED:
        what = f"This job is not finished: its state was “{record.state}” when this page was written."
        return div("banner waiting", tag("p", None, tag("strong", None, what)))
    what = "This job failed." if record.state == "failed" else f"This job was {record.state}."
    parts = [tag("p", None, tag("strong", None, what), " ", record.reason or "No reason was recorded; the log has the details.")]
    if record.resume_command:
        steps = [step for _, step in job.timeline.checkpoints] if job.timeline else []
        from_where = f"It goes on after the checkpoint of step “{steps[-1]}”:" if steps else "To start it again with the same plan:"
        parts.append(tag("p", None, from_where, " ", tag("code", {"class": "command"}, record.resume_command)))
    return div("banner bad" if record.state in ("failed", "lost") else "banner waiting", *parts)


def asked(job: Job) -> Markup | None:
    """The spec as it was written, what was found about its matrix, and where its result lies."""
    record = job.record
    if not record.spec and not record.spec_yaml:
        return None
    written = record.spec_yaml or yaml.safe_dump(json.loads(json.dumps(record.spec, default=str)), sort_keys=False)
    parts = []
    if record.matrix:
        facts = [words.fact(key, value) for key, value in record.matrix.items() if key != "notes" and value not in (None, "", [])]
        parts += [tag("h3", None, "The matrix"), _list(facts)]
        parts += [tag("p", None, str(note)) for note in record.matrix.get("notes") or ()]
    if record.result:
        opened = tag("code", None, f'zarr.open("{record.result}")')
        parts.append(tag("p", None, "The result is a Zarr group that any Zarr reader opens: ", opened))
    return section("What was asked", "", div("asked", tag("pre", None, written.strip()), div("words", *parts)))


def certificate(job: Job) -> Markup | None:
    """Each check: what it means, how far from its limit it is, whether it passed."""
    record = job.record
    checks = (record.certificate or {}).get("checks") or ()
    if not checks:
        return None
    n_passed = sum(bool(check["passed"]) for check in checks)
    if n_passed == len(checks):
        steps = record.matrix.get("transforms")
        what = f"as it is transformed ({', then '.join(map(str, steps))})" if steps else "itself"
        lead = f"After the work was done, the answer was measured against the matrix {what}. Every check passed."
    else:
        lead = f"{len(checks) - n_passed} of {len(checks)} checks failed. The answer must not be used, and it was not published."
    rows = [_check(check) for check in checks]
    reading = "Bars show the measured value over its limit, on a logarithmic scale: shorter is better, and red begins at the limit."
    scalars = [(key, value) for key, value in record.estimates.items() if isinstance(value, int | float)]
    parts = [div("checks", *rows), tag("p", {"class": "legend"}, reading)]
    if scalars:
        parts += [tag("h3", None, "Estimates"), div("facts", *(_list([words.fact(key, value)]) for key, value in scalars))]
    return section("Certificate", lead, *parts)


def _check(check: Mapping[str, Any]) -> Markup:
    passed, value, threshold = bool(check["passed"]), figures.measured(check), float(check["threshold"])
    if not math.isfinite(value):
        margin = "the measured value is not a finite number"
    elif value == 0:
        margin = "exactly zero"
    elif passed:
        margin = f"{words.number(threshold / value)} times under its limit"
    else:
        margin = f"{words.number(value / threshold)} times over its limit" if threshold > 0 else "over its limit"
    badge = tag("span", {"class": "badge good" if passed else "badge bad"}, "passed" if passed else "failed")
    measured = tag("p", {"class": "measured"}, tag("b", None, words.number(value)), f" of at most {words.number(threshold)}")
    return div(
        "check",
        div("verdict", badge),
        div("says", tag("p", None, words.sentence(str(check["meaning"]))), tag("p", {"class": "formula"}, str(check["name"]))),
        div("gauge", figures.check_bar(check), measured, tag("p", {"class": "margin"}, margin)),
    )


def timeline(job: Job) -> Markup | None:
    """Passes and throughput over time, and a table of the passes."""
    line = job.timeline
    if line is None or not line.passes:
        return None
    read, flops = job.record.rate("read_bytes_per_second"), job.record.rate("matmul_flops_per_second")
    bar = (
        "one pass over the rows, one group of panels factored, or one of columns that factors are applied to"
        if job.record.panels
        else "one pass over the rows"
    )
    lead = f"Each bar is {bar}. Where a curve meets its dashed line, the machine could not have gone faster."
    parts = [running.throughput(line, read, flops), _passes(line, read, flops)]
    return section("How it ran", lead, *parts)


def _passes(line: Timeline, read_limit: float | None, flops_limit: float | None) -> Markup:
    rows, passes = [], folded(line.passes)
    for run in passes[:_MOST_PASSES]:
        took = max(run.seconds, 1e-9)
        parts = [
            (part, name)
            for part, name in (
                (run.bytes_read / took / read_limit if read_limit else None, "reading"),
                (run.flops / took / flops_limit if flops_limit else None, "computing"),
            )
            if part is not None
        ]
        worked = run.outcome != "loaded" and (run.bytes_read > 0 or run.flops > 0)
        most = max(parts) if parts and worked else None
        bound = f"{words.share(most[0])} of the limit of {most[1]}" if most else words.MISSING
        if run.outcome != "done":
            bound = {"loaded": "loaded from its checkpoint", "cut": "the job stopped inside it"}[run.outcome]
        rate = [
            words.quantity(v / took, unit) if worked else words.MISSING
            for v, unit in ((run.bytes_read, "B/s"), (run.flops, "FLOP/s"))
        ]
        amounts = [words.size(run.bytes_read), words.quantity(run.flops, "FLOP")] if worked else [words.MISSING] * 2
        rows.append((run.step, words.duration(run.seconds), *amounts, *rate, bound))
    head = ("pass", "time", "read", "work", "reading", "computing", "how close to the machine's limit")
    shown = table(head, rows, style="passes")
    said = "Passes of one name stand in one row, with their sums." if len(passes) < len(line.passes) else ""
    if left_out := len(passes) - len(rows):
        said += f" {left_out} more rows are not listed."
    return join([shown, tag("p", {"class": "legend"}, said.strip())]) if said else shown


def memory(job: Job) -> Markup | None:
    """Memory of all processes against the limit."""
    line = job.timeline
    if line is None or len(line.memory_times) < 2:
        return None
    limit, peak = job.record.limit_bytes, line.peak_bytes or 0.0
    lead = f"The resident memory of all processes together peaked at {words.size(peak)}"
    lead += f", {words.share(peak / limit)} of the limit." if limit else "."
    if parts := [
        f"{need['what']} {words.size(need['n_bytes'])}" for need in job.record.plan.get("memory") or () if need["n_bytes"]
    ]:
        lead += f" Planned for each worker: {', '.join(parts)}."
    return section("Memory", lead, running.memory(line, limit, job.record.planned_peak_bytes))


def planned(job: Job) -> Markup | None:
    """The plan beside what was measured."""
    plan, line = job.record.plan, job.timeline
    if not plan:
        return None
    steps = [step for step in plan.get("steps") or () if step.get("where") != "driver"]
    done = [run for run in line.passes if run.outcome == "done"] if line else []
    written = sum(e.bytes_written for e in job.record.events if isinstance(e, StepFinished)) or None
    work = "floating-point work"
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("passes", len(steps), len({run.step for run in done if run.flops or run.bytes_read}) or None, ""),
        (work, sum(p["flops"] for p in steps), line.flops if line and line.passes else None, "FLOP"),
        ("read from storage", sum(p["bytes_read"] for p in steps), line.bytes_read if line and line.passes else None, "B"),
        ("written to storage", sum(p["bytes_written"] for p in steps), written, "B"),
        ("time in passes", plan.get("expected_seconds"), line.pass_seconds if line and line.passes else None, "s"),
        ("peak memory", job.record.planned_peak_bytes, line.peak_bytes if line else None, "B"),
    ]
    cells = []
    for name, want, got, unit in rows:
        if want is None or (want == 0 and not got):
            continue
        bar = figures.overrun(got, want) if want and got is not None else NOTHING
        cells.append((name, _amount(want, unit), _amount(got, unit), words.ratio(got, want), bar))
    lead = "The plan was made before anything ran, from the sizes of the matrix and the rates measured on this machine. "
    lead += "Measured memory counts every process with its program and libraries."
    grid, panels = (plan.get("grids") or {}).get("rows") or {}, job.record.panels
    if panels:
        n_groups = panels.get("n_groups") or 1
        cut = f"{words.count(panels['n_panels'])} panels of {words.count(panels['panel'])} columns"
        how = "all of them in memory together" if n_groups == 1 else f"in {n_groups} groups that fit in memory one after the other"
        lead += f" The matrix is factored in {cut}, {how}, by {words.workers(plan)}."
    elif grid.get("block_rows"):
        n_rows, high = grid.get("n_rows"), grid["block_rows"]
        cut = f"{words.count(-(-n_rows // high))} blocks of {words.count(high)}" if n_rows else f"blocks of {words.count(high)}"
        lead += f" The rows are read in {cut}, by {words.workers(plan)}."
    shown = table(("", "planned", "measured", "ratio", "less  |  more"), cells, style="planned")
    notes = [tag("li", None, str(note)) for note in plan.get("notes") or ()]
    return section("Plan and measurement", lead, shown, *([tag("ul", {"class": "notes"}, *notes)] if notes else []))


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return words.MISSING
    return words.duration(value) if unit == "s" else words.quantity(value, unit) if unit else words.count(int(value))


def notes(job: Job) -> Markup | None:
    """Notes, warnings, and the events that changed the job's course."""
    warnings = [event.message for event in job.record.events if isinstance(event, Warned)]
    items = [tag("li", {"class": "warn"}, text) for text in dict.fromkeys(warnings)]
    items += [tag("li", {"class": "warn"} if leaves_no_digit(note) else None, str(note)) for note in job.record.notes]
    told = [event for event in job.record.events if isinstance(event, StateChanged | Saved | Warned | StepFinished)]
    if not items and not told:
        return None
    parts = [tag("ul", {"class": "notes"}, *items)] if items else []
    if told:
        start = next((event.time for event in told if event.time is not None), 0.0)
        lines = [(_clock(event.time, start), event.word.replace("_", " "), _told(event)) for event in told[-_MOST_EVENTS:]]
        parts.append(
            tag(
                "details", None, tag("summary", None, f"Events ({len(told)})"), table(("after", "event", ""), lines, style="events")
            )
        )
    return section("Notes and events", "", *parts)


def _clock(time: float | None, start: float) -> str:
    return words.MISSING if time is None else words.duration(round(time - start, 3))


def _told(event: StateChanged | Saved | Warned | StepFinished) -> str:
    match event:
        case StateChanged():
            return " – ".join(filter(None, (event.state, event.message)))
        case Saved():
            return f"{event.step}, {words.size(event.bytes)} in {words.duration(event.seconds)}"
        case StepFinished():
            return f"{event.step}, {words.duration(event.seconds)}"
    return event.message


def environment(job: Job) -> Markup | None:
    """Where it ran, and with what."""
    record = job.record
    groups = [
        ("Machine", [words.fact(key, value) for key, value in record.machine.items() if key != "versions"]),
        ("Rates the plan used", [words.fact(key, value) for key, value in (record.plan.get("rates") or {}).items()]),
        ("Software", [(key, str(value)) for key, value in (record.versions or record.machine.get("versions") or {}).items()]),
    ]
    lists = [
        tag(
            "div",
            None,
            tag("h3", None, title),
            tag("dl", None, *(join([tag("dt", None, k), tag("dd", None, v)]) for k, v in facts)),
        )
        for title, facts in groups
        if facts
    ]
    return section("Environment", "", div("facts", *lists)) if lists else None


def _list(facts: Sequence[tuple[str, str]]) -> Markup:
    return tag("dl", None, *(join([tag("dt", None, name), tag("dd", None, value)]) for name, value in facts))
