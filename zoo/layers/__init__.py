"""Parts with parameters that two or more modules use and that do not mix along T."""
