"""Engines that a replica can run, behind one interface: `torch_engine` and `vllm_engine`."""
