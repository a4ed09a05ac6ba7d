"""Frozen states of a run's data: encoded once, mapped from disk, and made into batches."""

from train.states.batches import StatesBatcher
from train.states.cache import StatesCache, keep_states, stored_dtype
from train.states.worth import Need

__all__ = ["Need", "StatesBatcher", "StatesCache", "keep_states", "stored_dtype"]
