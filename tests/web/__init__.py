"""A page that classifies images with an exported file, and the test that opens it in a browser."""
