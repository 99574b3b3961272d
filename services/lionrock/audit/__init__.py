"""What happened, provably: one Merkle log a tenant, signed checkpoints, receipts that anyone verifies offline."""
