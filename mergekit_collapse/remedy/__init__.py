"""What would make a refused merge one that is inside its budget."""
