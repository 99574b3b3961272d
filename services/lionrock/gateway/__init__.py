"""The door of the mesh: authenticates, authorises, admits, and takes a question through every inner service to a receipt."""
