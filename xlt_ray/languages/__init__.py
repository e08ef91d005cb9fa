"""Languages themselves: codes and names, identification, typology, lexicons, word alignment."""
