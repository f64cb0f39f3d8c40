"""Diffusion mathematics on arrays, independent of networks and commands."""
