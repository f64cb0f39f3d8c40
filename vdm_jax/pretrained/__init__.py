"""Weights on disk: our safetensors, and files of other libraries, read safely."""
