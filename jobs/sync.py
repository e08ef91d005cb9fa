"""Send to MLflow what it lacks, as a job: `ray job submit --working-dir . -- python jobs/sync.py FOLDER`."""

import sys

from xlt_ray.cli import app

if __name__ == "__main__":
    app(["sync", *sys.argv[1:]])
