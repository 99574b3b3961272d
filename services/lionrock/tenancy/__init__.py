"""What a tenant is: the one schema of a Tenant, as a file and as a Kubernetes resource. Pure."""
