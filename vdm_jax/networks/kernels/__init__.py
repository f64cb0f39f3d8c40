"""Pallas kernels for TPUs: what XLA writes to memory stays on the chip.

Each has a backward pass of its own and equals the dense form in attention.py.
"""
