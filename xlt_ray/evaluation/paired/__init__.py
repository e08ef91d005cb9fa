"""Hold two models against each other on the rows that both have predicted."""
