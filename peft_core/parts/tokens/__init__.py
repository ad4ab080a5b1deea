"""What methods fill tokens with: masks over their pieces, networks that make them, starts from other runs."""
