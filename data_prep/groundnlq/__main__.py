"""The command: python -m data_prep.groundnlq."""

from data_prep import shards
from data_prep.groundnlq.prepare import main

if __name__ == "__main__":
    shards.main(main)
