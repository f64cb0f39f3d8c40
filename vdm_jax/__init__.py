"""vdm_jax: train, distil and sample video diffusion models in JAX."""
