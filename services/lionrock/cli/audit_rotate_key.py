"""`lionrock audit rotate-key`: makes the key to which a log is to change; the service does the rest (`lionrock.audit.rotation`)."""

from __future__ import annotations

from pathlib import Path

from lionrock.audit.failures import KeyUnusable
from lionrock.audit.keys import LOG_SIGNATURES, KeyDirectory
from lionrock.audit.platform_log import KEY_NAME
from lionrock.audit.settings import AuditSettings
from lionrock.chassis.settings import load_settings
from lionrock.cli.errors import EXIT_USAGE, CommandError


def run(config: Path, tenant: str | None, *, platform: bool) -> int:
    """Make the key. Raises CommandError."""
    if (tenant is None) == (not platform):
        raise CommandError("it is not clear which log", fix="give either --tenant or --platform", exit_code=EXIT_USAGE)
    settings = load_settings(AuditSettings, ["--config", str(config)])
    if tenant is not None and settings.tenants_dir is None and tenant not in settings.tenants:
        raise CommandError(
            f"the settings name no tenant {tenant}", fix=f"one of {', '.join(settings.tenants)}", exit_code=EXIT_USAGE
        )
    name = KEY_NAME if tenant is None else tenant
    origin = f"{settings.platform}/audit" if tenant is None else f"{settings.platform}/audit/{tenant}"
    keys = KeyDirectory(settings.key_dir, LOG_SIGNATURES[settings.signature])
    try:
        if keys.load(name, origin) is None:
            raise CommandError(f"{keys.path(name)} is not there", fix="run this where the service has its key directory")
        following = keys.create_next(name, origin)
    except FileExistsError:
        fix = "wait until the service has changed to it, or remove it if it is not wanted"
        raise CommandError(f"{keys.next_path(name)} waits already", fix=fix) from None
    except KeyUnusable as error:
        raise CommandError(str(error), fix="repair the key first") from error
    except OSError as error:
        raise CommandError(f"{keys.next_path(name)}: {error.strerror}", fix="run this as the user of the service") from error
    print(following.verifier_key)
    return 0
