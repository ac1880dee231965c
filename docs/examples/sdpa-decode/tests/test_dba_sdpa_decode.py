"""The contract, as DBA's own plugins have to keep it."""

from dba_core.testing import DecodeBackendContract


class TestSdpa(DecodeBackendContract):
    plugin = "sdpa"
