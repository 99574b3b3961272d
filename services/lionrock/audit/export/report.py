"""The page of an export that a person reads: who asked what for, which model answered, what the guardrails said, how to check it.

Knows: HTML, and the fields of leaves that a reader asks for first. Does not know: whether any of it is true: verify.py says that,
and the page says so. One static page without scripts and without anything from elsewhere; whatever comes from a leaf is escaped.
Memory: the first `ROWS_MAX` requests, and counts of at most `_KINDS_MAX` different values a field.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

ROWS_MAX: Final = 2_000
_KINDS_MAX: Final = 200
_CELL_MAX: Final = 160
_OTHERS: Final = "(others)"
_COUNTED: Final[Mapping[str, str]] = {
    "type": "Kind of leaf",
    "operation": "What was decided or done",
    "status": "How requests ended",
    "model": "Model",
    "verdict": "Verdict of the guardrails",
    "purpose": "Purpose",
    "actor": "Who asked",
}
_STYLE: Final = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{border:1px solid #c8ccd2;padding:.25rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{background:#eef1f4}td.number{text-align:right}code,pre{background:#f3f4f6;padding:.1rem .25rem}
pre{padding:.75rem;overflow-x:auto}
.note{border-left:4px solid #b45309;padding:.25rem .75rem;background:#fff7ed}"""


class Report:
    """Gathers what the page says while leaves go by."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
        self._rows: list[Sequence[str]] = []
        self._more = 0
        self._withheld = 0

    def add(self, index: int, fields: Mapping[str, Any]) -> None:
        """Take a leaf."""
        verdict = fields.get("answer_verdict") or fields.get("prompt_verdict") or {}
        model = fields.get("model") or {}
        values = {
            "type": fields.get("type"),
            "operation": fields.get("operation"),
            "status": fields.get("status"),
            "model": model.get("name"),
            "verdict": verdict.get("action"),
            "purpose": fields.get("purpose"),
            "actor": fields.get("actor"),
        }
        for name, value in values.items():
            self._count(name, value)
        if len(self._rows) == ROWS_MAX:
            self._more += 1
            return
        said = (fields.get(name) for name in ("status", "reason", "operation", "object_id"))
        ended = " ".join(str(part) for part in said if part)
        row = [index, *(fields.get(name) for name in ("ts", "type", "actor", "purpose", "case_id"))]
        row += [model.get("name"), verdict.get("action"), ended, fields.get("request_id")]
        self._rows.append([_short(value) for value in row])

    def add_withheld(self) -> None:
        """Count a leaf of which nothing but its hash is here."""
        self._withheld += 1

    def html(self, manifest: Mapping[str, Any]) -> bytes:
        """Write the page. `manifest`: what the manifest says, but for its files."""
        selection, by = manifest["selection"], manifest["exported_by"]
        facts = [
            ("Log", manifest["origin"]),
            ("From (inclusive)", selection["from"]),
            ("To (exclusive)", selection["to"]),
            ("Case", selection.get("case_id", "all")),
            ("Leaves", f"{manifest['leaves']}, of a tree of {manifest['tree_size']}"),
            ("Leaves withheld", str(self._withheld)),
            ("Records with payloads", str(manifest["payload_records"])),
            ("Left out", ", ".join(f"{name}: {value}" for name, value in manifest["left_out"].items()) or "nothing"),
            ("Exported by", f"{by['actor']} as {', '.join(by['roles'])}, for {by['purpose']}"),
            ("Exported at", manifest["created_at"]),
            ("Recorded as leaf", str(manifest["export_leaf"])),
        ]
        parts = [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>Audit export of {escape(manifest['origin'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Audit export of {escape(manifest['origin'])}</h1>",
            '<p class="note">This page is a reading aid and proves nothing. What is proven is what <code>verify.py</code> says ',
            "about the archive that this page came in, run with keys that you did not take from the archive.</p>",
            "<h2>What this is</h2>",
            _table([], facts),
            "<h2>How to check it</h2><pre>python verify.py EXPORT.zip --key KEY-OF-THE-LOG --key KEY-OF-THE-PLATFORM",
            " --witness-key KEY-OF-A-WITNESS --witnesses 1</pre><p>Better: with a copy of <code>verify.py</code> that you had ",
            "before. <code>--extract INDEX</code> writes the proof of one leaf in a form (c2sp.org/tlog-proof) that other ",
            "programs read.</p>",
        ]
        for name, title in _COUNTED.items():
            if self._counts[name]:
                parts.append(f"<h2>{title}</h2>")
                parts.append(_table([], [(value, str(count)) for value, count in self._counts[name].most_common()]))
        titles = ("Leaf", "When", "Kind", "Who", "Purpose", "Case", "Model", "Verdict", "End", "Request")
        parts += ["<h2>Leaves</h2>", _table(titles, self._rows)]
        if self._more:
            parts.append(f"<p>{self._more} more are in <code>leaves.jsonl</code>.</p>")
        return ("".join(parts) + "</body></html>\n").encode("utf-8", "replace")

    def _count(self, name: str, value: object) -> None:
        if not value:
            return
        counter = self._counts[name]
        shown = _short(value)
        counter[shown if shown in counter or len(counter) < _KINDS_MAX else _OTHERS] += 1


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 1] + "…"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
