"""From tables to pictures and captions."""
