"""Weights on disk: safetensors, never pickle."""
