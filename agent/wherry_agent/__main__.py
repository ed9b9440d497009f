"""`python -m wherry_agent`: the daemon where it is not installed as a distribution, in its image."""

import sys

from wherry_agent.app import main

if __name__ == "__main__":
    sys.exit(main())
