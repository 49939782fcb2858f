"""Files in, files out: a trained run over any number of rows, in bounded memory, to be gone on with after a kill."""
