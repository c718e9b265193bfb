"""Check."""


def check(words): ...
