"""How well the optimizers train: named sets of runs, kept as data.

`python -m experiments NAME` runs a set; docs/experiments.md tells which there are and how to read them.
"""
