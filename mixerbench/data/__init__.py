"""Images, the order in which they are seen, and the loader that draws nothing by itself."""
