"""A lock that locks nothing: what check C39 is given in the row "lock that locks nothing"."""

from contextlib import contextmanager


@contextmanager
def hold(folder):
    yield folder
