"""Published rewrites of attention that drop no rows, a file each."""
