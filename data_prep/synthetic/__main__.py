"""Entry point of `python -m data_prep.synthetic`."""

from data_prep import commands


def main() -> None:
    """Runs the command; imported here, so that a package that is not installed is one line."""
    from data_prep.synthetic import prepare

    prepare.main()


if __name__ == "__main__":
    commands.main(main)
