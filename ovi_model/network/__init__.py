"""The twin DiT: both towers in lock step, and the memory they take."""
