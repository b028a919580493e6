//! The slot and its acknowledgement: nothing is retained without need, nothing acknowledged too early.
