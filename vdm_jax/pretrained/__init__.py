"""Weights on disk: our own are safetensors; other people's pickles hold arrays only."""
