"""One hypothesis profile for all tests: no deadline (the first example of a torch test is slow), and the same
examples every time where CI is set.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("dba", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("dba")
