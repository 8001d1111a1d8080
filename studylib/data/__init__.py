"""From sources to checked data sets."""
