"""A naive inspection of whole texts, written from the rule in stream.py's docstring and not from its code.

Searches every expression from every position with `re`, which has look-around; holds everything in memory; knows no chunks.
"""

import re

from lionrock.guardrails.detectors import CONTEXT_LENGTH, Hit
from lionrock.guardrails.detectors.phrases import phrase_view
from lionrock.guardrails.normalise import Normaliser
from lionrock.guardrails.patterns import render
from lionrock.guardrails.program import Action, Program
from lionrock.guardrails.stream import Finding


def reference(program: Program, text: str) -> tuple[str, list[Finding], bool]:
    """Return what is released, the findings, and whether the text is blocked."""
    view, raw_at = Normaliser().push(text)
    matches: list[tuple[int, int, int, int, int, float]] = []
    for number, rule in enumerate(program.rules):
        for shape in (*(rule.detector.shapes if rule.detector else ()), *rule.shapes):
            before = "(?<![0-9A-Za-z])" if shape.before else ""
            after = "(?![0-9A-Za-z])" if shape.after else ""
            expression = re.compile(f"{before}(?:{render(shape.pattern)}){after}", re.ASCII | re.IGNORECASE)
            position = 0
            while position < len(view):
                found = expression.match(view, position)
                hit = None
                if found and rule.detector:
                    # The inspection puts a line break before the text.
                    context = ("\n" + view[:position])[-CONTEXT_LENGTH:]
                    hit = rule.detector.check(found.group(), context)
                elif found:
                    hit = Hit(len(found.group()), rule.confidence)
                if hit is None or hit.confidence < rule.min_confidence:
                    position += 1
                    continue
                matches.append((position, -rule.action, -(position + hit.end), number, 0, -hit.confidence))
                position += hit.end
        lowered = phrase_view(view)
        for phrase in rule.phrases:
            before = "(?<![0-9a-z])" if re.match("[0-9a-z]", phrase) else ""
            after = "(?![0-9a-z])" if re.search("[0-9a-z]$", phrase) else ""
            starts = [found.start() for found in re.finditer(f"(?={before}{re.escape(phrase)}{after})", lowered)]
            matches += [(at, -rule.action, -(at + len(phrase)), number, 0, -rule.confidence) for at in starts]
    released, cursor, findings = "", 0, list[Finding]()
    for start, _, end, number, _, confidence in sorted(matches):
        rule = program.rules[number]
        finding = Finding(rule.id, rule.type, raw_at[start], raw_at[-end - 1] + 1, rule.action, -confidence)
        if any(f.start <= finding.start and f.end >= finding.end and f.action >= finding.action for f in findings):
            continue
        findings.append(finding)
        if rule.action is Action.BLOCK:
            return released + text[cursor : finding.start], findings, True
        if rule.action is Action.MASK and finding.end > cursor:
            released += text[cursor : finding.start] + rule.placeholder
            cursor = finding.end
    return released + text[cursor:], findings, False
