"""Where rows wait to be learned from."""

from xrl.memory.memory_check import available_memory, check_disk, check_fits
from xrl.memory.sequence_replay import SequenceReplay

__all__ = ["SequenceReplay", "available_memory", "check_disk", "check_fits"]
