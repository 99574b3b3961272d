"""The `lionrock` command: run the mesh on one machine, talk to it, and check what it says."""
