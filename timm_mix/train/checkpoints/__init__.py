"""What a checkpoint holds, and the folder that keeps the newest ones."""
