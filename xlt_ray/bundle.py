"""The name by which MLflow loads every registered model; the code is in `inference/pyfunc.py`."""

from xlt_ray.inference.pyfunc import load_pyfunc as _load_pyfunc

__all__ = ["_load_pyfunc"]
