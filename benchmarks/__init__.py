"""How long steps take, beside other optimizers and beside what the machine could do at best.

`python -m benchmarks.cpu` and `python -m benchmarks.gpu` run the suites; docs/benchmarks.md tells how to read them.
"""
