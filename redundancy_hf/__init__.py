"""What the three packages stand on: data, saved folders, measurements and commands; it knows none of them."""
