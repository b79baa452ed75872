"""Check suites: what every detector, trigger and tampering must hold to, for ours and for anybody's plug-in."""

from intaglio.checks.detector import check_detector
from intaglio.checks.failures import CheckError
from intaglio.checks.tampering import check_tampering
from intaglio.checks.trigger import check_trigger

__all__ = ["CheckError", "check_detector", "check_tampering", "check_trigger"]
