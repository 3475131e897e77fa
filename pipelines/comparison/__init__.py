"""The parts of `compare`: MLflow runs beside one another, and beside a paper's table."""
