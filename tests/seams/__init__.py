"""One new condition, video condition, network and task each: one file, one row."""
