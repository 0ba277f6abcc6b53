"""The token dialect: operators of the ``tokopt::`` namespace, one file each, declared once.

``OPS`` maps each operator's name to its record.  Importing this package registers them all with
torch; the reference semantics are plain aten, so every target can lower them.
"""

from tokopt.ir.dialect.declare import OPS, Op, is_dialect, load_dialect

load_dialect()

__all__ = ["OPS", "Op", "is_dialect"]
