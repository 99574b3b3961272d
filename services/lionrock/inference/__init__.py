"""Token ids in, token ids out: the engine, its model, and the front that serves them over one chip pool."""
