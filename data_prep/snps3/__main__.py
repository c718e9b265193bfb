"""Command line of the preparation for SNP-S3: python -m data_prep.snps3."""

from data_prep import commands


def main() -> None:
    """Run the command. The import is here so that a missing package becomes a one-line error."""
    from data_prep.snps3 import prepare

    prepare.main()


if __name__ == "__main__":
    commands.main(main)
