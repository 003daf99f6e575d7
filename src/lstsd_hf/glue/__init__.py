"""Fine-tuning from the command line, on GLUE tasks or the user's own files."""
