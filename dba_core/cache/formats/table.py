"""The codec of every cache format by name: a new format is a file here, a row below and one in `info`."""

from __future__ import annotations

from dba_core.cache.formats.codec import Codec
from dba_core.cache.formats.fp import BF16, FP16, FP32
from dba_core.cache.formats.nf4 import NF4
from dba_core.cache.formats.q4_0 import Q4_0
from dba_core.cache.formats.q8_0 import Q8_0

_ALL: tuple[Codec, ...] = (FP32, FP16, BF16, Q8_0, Q4_0, NF4)
CODECS: dict[str, Codec] = {codec.info.name: codec for codec in _ALL}
