"""One module a suite; each has `run`, which measures and gives its rows."""
