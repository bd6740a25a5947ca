"""``python -m ferrum`` is the ``ferrum`` command."""

import sys

from ferrum.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
