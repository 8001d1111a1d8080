"""How good benign answers are."""
