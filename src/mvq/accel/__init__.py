"""The machine that runs compressed networks: one specification, four views of it."""
