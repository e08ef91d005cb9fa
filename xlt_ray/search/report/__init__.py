"""Reports of searches: the page, its figures, and what MLflow records."""
