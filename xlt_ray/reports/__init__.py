"""Reports of runs: tables, plots and the page that holds them."""
