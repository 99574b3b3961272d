"""The Kubernetes operator: chips to pools, models to nodes. Its deciding files are pure; `cluster` alone imports a client."""
