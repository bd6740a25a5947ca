"""``python -m ferrum`` and the ``ferrum`` command: Ctrl-C while the modules are loaded ends it as quietly as later on."""

import sys


def main() -> int:
    """Run the command line of this process and return its exit status."""
    try:
        from ferrum.cli.main import main
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(main())
