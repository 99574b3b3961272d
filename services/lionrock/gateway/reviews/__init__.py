"""Held answers: which wait for a reviewer, who decides on them, and what their author learns."""
