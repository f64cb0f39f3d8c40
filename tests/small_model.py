"""A small labelled config that the tests of model, build and runs share."""

from configs import shapes

VOCABULARY = (("a", "b", "c"), ("x", "y"))


def smoke_config():
    """configs/shapes.py:smoke with VOCABULARY and pixel statistics, unlocked."""
    config = shapes.get_config("smoke").unlock()
    config.data.update(label_vocabulary=VOCABULARY, mean=-0.3, variance=0.2)
    return config
