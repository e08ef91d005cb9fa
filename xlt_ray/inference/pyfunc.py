"""A bundle as MLflow's generic loader opens and asks it."""

from __future__ import annotations

import io
from typing import Any

from xlt_ray.inference import bundle, tagging
from xlt_ray.inference.bundle import Bundle


class PyFunc:
    """The model that MLflow's generic loader calls: texts in, labels out, or of words the JSON of `xlt predict`."""

    def __init__(self, model: Bundle) -> None:
        self.bundle = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Answer a list of texts, a Series, or a frame whose first column is text and whose second its pair."""
        columns = getattr(model_input, "columns", None)
        texts = [str(text) for text in (model_input if columns is None else model_input.iloc[:, 0])]
        if self.bundle.task.tagged:
            out = io.StringIO()
            tagging.tag_lines(self.bundle, texts, False, out)
            return out.getvalue().split("\n")[:-1]
        pairs = [str(text) for text in model_input.iloc[:, 1]] if columns is not None and len(columns) > 1 else None
        return self.bundle.predict(texts, pairs)


def load_pyfunc(path: str) -> PyFunc:
    """Load a bundle as mlflow.pyfunc's `loader_module` does."""
    return PyFunc(bundle.load(path))
