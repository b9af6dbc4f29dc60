"""The four commands: each parses, builds one config, calls one function and prints where the result is."""
