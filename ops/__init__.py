"""What an operator does with an account: one file for each command."""
