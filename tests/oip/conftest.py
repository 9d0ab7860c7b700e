"""One hypothesis profile: the same examples on every run, no clock, nothing written beside the tests."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "oip", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("oip")
