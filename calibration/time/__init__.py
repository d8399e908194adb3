"""Time offsets between sensors: claps, a talking mouth, a turning rig."""
