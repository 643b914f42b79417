//! Placement: slots, their owners and what changes them for a while. Pure: no I/O, no clock, no tasks.
