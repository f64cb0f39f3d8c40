"""Pallas kernels for TPUs: what XLA leaves in memory between products stays on the chip.

Each has a backward pass of its own and equals the dense form in attention.py.
"""
