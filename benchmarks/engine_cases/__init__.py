"""The cases of `benchmarks.engine`: each starts the engines that it compares, measures them in turns, and returns rows."""
