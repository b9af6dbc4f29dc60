"""The commands: each parses its options, builds one config, calls one function and prints one answer.

What a command does lives in the package that bears its name; nothing is computed here.
"""
