"""xlt_ray: distributed cross-lingual transfer on Ray.

Labels in a few languages go in; a measured, tracked, loadable model for many languages comes out. Read `config.py` for
what a run is, `corpus.py` and `mixture.py` for what it learns from, `network.py` and `loop.py` for how it learns,
`metrics.py` for what is claimed about it, then `train.py`, where Ray Train carries all of it.
"""
