"""Answer formats: regular expressions and JSON schemas, and the automata over tokens that enforce them."""
