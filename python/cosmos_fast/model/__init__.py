"""The networks, each readable from top to bottom; ``ops`` picks kernel or torch, once."""
