"""How fast, and in how much memory: each module is a command, `python -m benchmarks.train_step`."""
