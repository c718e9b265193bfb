"""Entry point of `python -m data_prep.synthetic`."""

from data_prep import commands
from data_prep.synthetic.prepare import main

if __name__ == "__main__":
    commands.main(main)
