"""The name by which MLflow loads every registered model; the code is in `inference/bundle.py`."""

from xlt_ray.inference.bundle import _load_pyfunc as _load_pyfunc
