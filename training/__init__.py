"""How the bundled emotion classifier is made: `python -m training.train`. Nothing in `assay` imports this."""
