"""Arrays in, arrays out; knows no project, file or network."""
