"""What an answer may look like: regular languages, JSON schemas, and automata over tokens."""
