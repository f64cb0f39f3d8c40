"""Invert held-out clips by DDIM, and sample back from the noise."""

import sys

import numpy as np

from vdm_jax import data, runs, sampling
from vdm_jax.data import pipeline

trained = runs.load("models/shapes")
source = data.open_source(trained.config)
batch = pipeline.held_out_batch(trained.config, source, 4)
videos = np.asarray(trained.model.normalize(batch["video"]))
cond = {"label": batch["label"]}
settings = sampling.Settings(sampler="ddim", steps=16, clip_x=0.0, batch_size=4)
z = sampling.invert(trained.model, trained.params, videos, settings, cond=cond)
inputs = sampling.SamplingInputs(cond, initial_noise=z)
back = sampling.sample(trained.model, trained.params, 4, settings, inputs)
np.savez(sys.argv[1], videos=videos, noise=z, back=back)
