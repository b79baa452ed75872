"""The command line: parsing, printing and exit codes; everything else is in the library."""
