"""What data subjects agreed to and what they do not want: kept by all gateways together, asked before a request goes on."""
