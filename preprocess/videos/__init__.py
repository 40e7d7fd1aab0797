"""Video files below their frames: containers, times, which side is up; and JPEG headers."""
