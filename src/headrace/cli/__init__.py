"""The command line: one small file for each command. Imports torch only when a model is started."""
