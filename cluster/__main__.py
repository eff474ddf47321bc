"""What the command `recsys` begins with, and `python -m cluster`: Ctrl-C is heard while all else is still loaded."""

import sys


def main() -> None:
    """`cluster.cli.main`."""
    try:
        from cluster.cli import main as run

        run()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
