"""Archives: any number of pictures, compressed or decompressed on Ray."""
