"""python -m vdm_jax.export --workdir=RUN --out=models/NAME (or --cascade=RUNS)"""

from vdm_jax import cli

if __name__ == "__main__":
    cli.export()
