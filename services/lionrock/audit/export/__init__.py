"""The export for a regulator: one archive of leaves, proofs, keys and authorised payloads that verifies offline."""
