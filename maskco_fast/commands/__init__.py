"""The commands of `maskco-fast`, one module each: its options and its function.

`maskco_fast.cli.COMMANDS` lists them.
"""
