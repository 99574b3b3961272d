"""How much a tenant, or a caller within it, may use: requests, tokens and open answers, counted by all gateways together."""
