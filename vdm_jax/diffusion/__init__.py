"""Pure diffusion mathematics on arrays: knows no network and no system."""
