"""Prompting, loading, tuning and questioning language models."""
