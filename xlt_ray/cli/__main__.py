"""`python -m xlt_ray.cli` is the `xlt` command."""

from xlt_ray.cli import main

if __name__ == "__main__":
    main()
