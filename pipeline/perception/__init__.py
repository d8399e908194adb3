"""What tasks are made of: expressions, obstacles, objects, places, sound events."""
