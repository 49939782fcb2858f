"""The messages that `labeltune demo` learns from, shipped with the package; README.md is their data card."""
