"""The engine: scheduling, paged KV blocks and sampling over a model runner. Knows neither Ray nor gRPC."""
