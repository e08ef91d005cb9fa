"""Search on a Ray cluster: `ray job submit --working-dir . -- python jobs/tune.py CONFIG [KEY=VALUE]...`."""

import sys

from xlt_ray.cli import app

if __name__ == "__main__":
    app(["tune", *sys.argv[1:]])
