"""Write the complete config.json, and the parameters' shapes."""

import json
import sys
from pathlib import Path

import jax

from vdm_jax import config_files
from vdm_jax.training.train import build_from_config

folder = Path(sys.argv[1])
config, _ = config_files.take_config_flags(sys.argv[2:])
assert config is not None
_, _, model = build_from_config(config)
tree = jax.eval_shape(model.init_params, jax.random.key(0))
shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
}
(folder / "shapes.json").write_text(json.dumps(shapes))
(folder / "config.json").write_text(config.to_json_best_effort())
