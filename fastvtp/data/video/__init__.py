"""Frames out of video files and folders of pictures, exact to the frame."""
