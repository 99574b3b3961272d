"""Models in plain PyTorch: configuration, weights, the transformer, its sharding and the worker of one rank."""
