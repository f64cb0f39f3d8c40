"""python -m vdm_jax.export --workdir=RUN --out=models/NAME (or --cascade=RUNS)"""

from vdm_jax.commands import export

if __name__ == "__main__":
    export.main()
