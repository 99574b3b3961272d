"""Write the table of all reasons into docs/errors.md; with --check, only say whether it is current (exit status 1 when not)."""

from __future__ import annotations

import sys
from pathlib import Path

from lionrock.chassis.reasons import all_reasons, markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
MARK = "<!-- Written by `make docs` from the code; edit the docstrings of the error classes. -->\n\n"


def page_with_table() -> str:
    """Return the page's own text up to the mark, and a new table after it."""
    text, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{PAGE}: the mark before the table is missing")
    return text + mark + markdown_table(all_reasons())


def main() -> int:
    """Write or check."""
    wanted = page_with_table()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != wanted:
            print("docs/errors.md is out of date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
