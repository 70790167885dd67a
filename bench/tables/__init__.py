"""The tables: each is a command that fills its part of a result's file."""
