"""Request <-> sequence: one file per task, the parts and presets they share, and loops over several tasks."""
