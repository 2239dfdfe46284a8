"""``python -m lficam`` is ``lficam``."""

import sys


def main() -> int:
    """``lficam``: the command line, of which ``predict`` needs no PyTorch and nothing that would load it."""
    if sys.argv[1:2] == ["predict"]:
        from lficam import portable  # noqa: PLC0415

        return portable.main(sys.argv[2:])
    from lficam import cli  # noqa: PLC0415

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
