"""Settings of the property tests."""

from hypothesis import settings

# The machine may be busy: how long one example takes says nothing.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
