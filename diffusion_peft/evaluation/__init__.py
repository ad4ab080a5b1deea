"""What protocols are made of: scorers of pictures, pictures drawn into folders, figures of features, tables."""
