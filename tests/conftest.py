"""Property tests draw the same examples everywhere, and a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")
