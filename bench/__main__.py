"""`python -m bench`."""

import sys

if __name__ == "__main__":  # a worker process imports this module, too
    from bench.cli import main

    sys.exit(main())
