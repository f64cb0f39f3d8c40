"""Shards of clips in the format of TensorFlow Datasets, and the tasks that write them.

Nothing here imports JAX: the tasks run in processes of their own.
"""
