"""Commands: their flags, and what a user sees when something is wrong.

Each module has a `main` that parses the command line and runs the command. Errors of a
user are one line on standard error and an exit status (`main.run`).
"""
