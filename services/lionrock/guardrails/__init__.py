"""The guardrails service: what may be asked of a model and what may be shown of its answer."""
