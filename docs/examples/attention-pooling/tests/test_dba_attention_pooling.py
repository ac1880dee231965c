"""The contract, as DBA's own plugins have to keep it."""

from dba_core.testing import SummarizerContract


class TestAttentionPooling(SummarizerContract):
    plugin = "attention-pooling"
