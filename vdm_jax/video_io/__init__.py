"""Reading and writing of videos: all of PyAV and Pillow lives in this room."""
