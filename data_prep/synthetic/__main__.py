"""The command: python -m data_prep.synthetic."""

from data_prep import shards
from data_prep.synthetic.prepare import main

if __name__ == "__main__":
    shards.main(main)
