"""The comparison: arms that differ from a reference in one factor each, trained with several seeds, and their table."""
