"""Search the mix of source languages, alpha and techniques with Ray Tune. Begin at `search.py`."""
