"""Measure a bundle, as a job: `ray job submit --working-dir . -- python jobs/evaluate.py FOLDER`."""

import sys

from xlt_ray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
