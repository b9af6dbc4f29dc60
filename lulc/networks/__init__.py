"""Networks in words, as arrays in files, and as graphs of a framework."""
