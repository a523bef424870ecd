"""Count what the lines of a ledger say: ``python tests/chaos/ledger.py FILE``, a table of faults in Markdown."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path


def table(lines: list[str]) -> str:
    """Faults by what they were, over how many kinds of job, and how many of their tests failed."""
    counts: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {}
    for line in map(json.loads, lines):
        for fault in line["faults"]:
            what, _, kind = fault.rpartition(" of ")
            what, kind = (re.sub(r"\d+", "N", what), kind) if what else (fault, "")
            counts[what] += 1
            failed[what] += line["outcome"] != "passed"
            kinds.setdefault(what, set()).add(kind)
    rows = [f"| {what} | {n} | {len(kinds[what])} | {failed[what]} |" for what, n in counts.most_common()]
    total = f"| **all** | {counts.total()} | {len(set().union(*kinds.values()))} | {failed.total()} |"
    return "\n".join(["| fault | times | kinds of job | not as promised |", "| --- | --- | --- | --- |", *rows, total])


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
