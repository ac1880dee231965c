"""`python -m dba_cli`: the same as `dba`, for `torchrun -m dba_cli run ...`."""

from __future__ import annotations

import sys

from dba_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
