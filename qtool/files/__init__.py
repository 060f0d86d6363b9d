"""Files, written whole or not at all, and read with errors that name them.

whole: written in one move. reading: what is wrong with a file is said as the file's.
"""
