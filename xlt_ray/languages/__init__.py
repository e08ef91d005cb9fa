"""What is known of languages themselves: codes and names, identification, typology, lexicons, word alignment."""
