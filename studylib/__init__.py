"""A reproducible study of how benign LoRA fine-tuning erodes refusals, and how to repair it."""
