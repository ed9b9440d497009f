"""`python -m wherry_serving`."""

import sys

from wherry_serving.app import main

if __name__ == "__main__":
    sys.exit(main())
