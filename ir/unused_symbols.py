"""Keep one notice of torch's loader off the screen: a symbol with a range that no value has.

Export gives sizes that it later proves constant a symbol, and keeps the symbol's range; reading the
program back, torch warns that "Symbol u0 did not appear in the graph".  It means nothing to a user.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOADER = "torch._export.serde.serialize"
NOTICE = "did not appear in the graph that was deserialized"


@contextmanager
def without_notices() -> Iterator[None]:
    """Drop exactly this notice of torch's loader while the block runs; all others pass."""
    logger = logging.getLogger(LOADER)
    logger.addFilter(_is_other)
    try:
        yield
    finally:
        logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return NOTICE not in str(record.msg)
