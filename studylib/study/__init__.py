"""What a study is, as plain data: words, profiles, the grid, paths and files."""
