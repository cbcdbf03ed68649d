"""Side-by-side programs: what sqla_vector costs or saves against another way of doing the same thing.

``python -m benchmarks`` runs them all; ``python -m benchmarks --help`` lists them.  Every figure is a ratio of two
variants that alternate in one run on one machine, so that whatever else the machine does concerns both.
"""
