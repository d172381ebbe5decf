"""The command line: one table of commands in ``main``, each imported when it is used."""
