"""Which model fits which chips, and how it is cut: pure arithmetic, shared by the engine, the operator and the command line."""
