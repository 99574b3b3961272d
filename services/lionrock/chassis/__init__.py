"""What every server of the mesh shares: identity, limits, errors, telemetry, settings. Imports no service."""
