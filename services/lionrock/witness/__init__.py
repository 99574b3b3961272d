"""The witness: an independent server that cosigns what a log has only ever appended to (c2sp.org/tlog-witness)."""
