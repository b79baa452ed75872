"""Networks, small ones first: each is one file, and `Architecture` builds any of them by name."""

from intaglio.networks.architecture import NETWORKS, VIDEO_NETWORKS, Architecture

__all__ = ["NETWORKS", "VIDEO_NETWORKS", "Architecture"]
