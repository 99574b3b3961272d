"""Formats of transparency logs (C2SP, RFC 6962): pure, shared by the log, its witnesses and what else reads them."""
