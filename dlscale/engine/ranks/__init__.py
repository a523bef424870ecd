"""The same program on every rank, and how ranks meet."""

from dlscale.engine.ranks.communicator import Communicator, MPICommunicator

__all__ = ["Communicator", "MPICommunicator"]
