"""Promote a run, as a job: `ray job submit --working-dir . -- python jobs/promote.py RUN`."""

import sys

from xlt_ray.cli import app

if __name__ == "__main__":
    app(["promote", *sys.argv[1:]])
