"""xlt_ray: distributed cross-lingual transfer on Ray.

Labels in a few languages go in; a measured, tracked, loadable model for many languages comes out. Read, in this order,
`config/experiment.py` for what a run is, `corpora/corpus.py` and `corpora/mixture.py` for what it learns from (alpha
acts there), `model/network.py`, `training/setup.py` and `training/loop.py` for how it learns, `evaluation/metrics.py`
for what is claimed about it, then `runs/run.py`, where a run begins and ends. A technique plugs in at
`techniques/technique.py`, and a checkpoint is made in `training/checkpoint.py`.
"""
