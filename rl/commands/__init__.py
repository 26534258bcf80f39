"""What the subcommands of ``medrl`` take and print; the work itself is done elsewhere."""
