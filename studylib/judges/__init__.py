"""A verdict for every response."""
