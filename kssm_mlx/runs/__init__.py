"""What a run folder is. Standard library only, so that whatever reads runs can stand on it."""
