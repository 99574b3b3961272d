"""Engines that benchmarks compare, each in a process and, where it is not ours, an environment of its own."""
