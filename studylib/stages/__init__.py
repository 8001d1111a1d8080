"""What each notebook calls."""
