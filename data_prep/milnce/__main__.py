"""The command: python -m data_prep.milnce."""

from data_prep import shards
from data_prep.milnce.prepare import main

if __name__ == "__main__":
    shards.main(main)
