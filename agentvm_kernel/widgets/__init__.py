"""What magics show in a notebook that goes on by itself."""
