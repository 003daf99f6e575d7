"""Fine-tuning by command: GLUE tasks, and files of the user's."""
