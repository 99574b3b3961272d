"""Where a command finds the user's token: in a file or in the environment, never on the command line, which others can see.

    --token-file FILE, LIONROCK_TOKEN_FILE      a file, read again at every call
    LIONROCK_TOKEN                              the token itself

Both the same time are a mistake. Knows names; the token is read by `lionrock.client.tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.client.tokens import Token, TokenFile, TokenSource, TokenUnusable

FILE_VARIABLE = "LIONROCK_TOKEN_FILE"
VARIABLE = "LIONROCK_TOKEN"


def token_of(file: Path | None, environ: Mapping[str, str]) -> TokenSource | None:
    """Return the token that is given; None: there is none. Raises CommandError for one that is unusable."""
    named = file or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    value = environ.get(VARIABLE)
    if file is None and named is not None and value:
        raise CommandError(f"both {FILE_VARIABLE} and {VARIABLE} are set", fix="unset one of them", exit_code=EXIT_USAGE)
    source: TokenSource | None = TokenFile(named) if named is not None else Token(value) if value else None
    if source is None:
        return None
    try:
        source.read()
    except TokenUnusable as error:
        raise CommandError(
            str(error), fix="put an API key or an OpenID Connect token there, and nothing else", exit_code=EXIT_USAGE
        ) from None
    return source
