"""A Kubernetes control plane of this machine's own: real etcd and API server, and whatever else a test asks for."""
