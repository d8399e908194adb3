"""What the verbs of the command line compose and print; the only package that knows nodes by name."""
