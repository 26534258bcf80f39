"""Tools that the policy may call between its turns."""
