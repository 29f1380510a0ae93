"""Where rows wait to be learned from."""

from xrl.memory.memory_check import available_memory, check_disk, check_fits
from xrl.memory.rollouts import Rollouts
from xrl.memory.sequence_replay import SequenceReplay
from xrl.memory.transitions import Draw, Priorities, TransitionReplay

__all__ = ["Draw", "Priorities", "Rollouts", "SequenceReplay", "TransitionReplay", "available_memory", "check_disk",
           "check_fits"]
