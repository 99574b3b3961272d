"""Kernels for CPUs in C++: compiled at first use, called through ctypes, a step at a time.

`build` compiles and finds the library, `library` declares and calls it, `matrix` holds packed weights, `program` turns a loaded
model into the list of operations that the library runs. Where there is no compiler, or another device, PyTorch does the same work.
"""
